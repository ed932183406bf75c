"""Run the command line as ``python -m spadnet``."""

import sys

from spadnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
