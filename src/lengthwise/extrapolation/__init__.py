"""Models measured beyond the length that they were trained at."""
