"""`python -m tolktrain`."""

import sys

if __name__ == "__main__":
    from tolktrain.cli import program

    sys.exit(program())
