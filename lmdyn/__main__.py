"""`python -m lmdyn`: the tools for one's own runs, from a shell."""

import sys

from lmdyn._cli import main

if __name__ == "__main__":
    sys.exit(main())
