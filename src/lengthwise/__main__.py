"""`python -m lengthwise`, which is how torchrun starts it."""

import sys

from lengthwise.cli import main

sys.exit(main())
