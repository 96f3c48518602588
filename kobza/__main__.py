"""`python -m kobza` is `kobza`."""

import sys

from kobza.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
