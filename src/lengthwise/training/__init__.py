"""The training loop, checkpoints, schedules and logs."""
