"""What the verbs of the command line can be told, as dataclasses. No torch here, so that `--help` is quick."""
