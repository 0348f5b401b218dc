"""The main job: candidates trained on the same data under one budget, measured against length, and recommended."""
