"""`python -m batchopt`."""

import sys

from batchopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
