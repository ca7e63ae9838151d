"""`python -m glmlite.serve`: `glmlite serve` without what the commands need."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
