"""What the verbs of the command line do, beyond what cli.py says itself: it alone imports this room."""
