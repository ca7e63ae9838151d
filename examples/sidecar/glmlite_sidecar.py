"""The program that is frozen: `glmlite serve` without the packages that the other commands need."""

import sys

from glmlite.serve.command import main

if __name__ == "__main__":
    sys.exit(main())
