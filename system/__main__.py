"""`python -m system` is the `credence` command, for nodes where nothing is installed."""

import sys

from system.cli import main

if __name__ == "__main__":
    sys.exit(main())
