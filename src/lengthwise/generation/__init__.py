"""Sampling, streaming, and sessions that keep a state."""
