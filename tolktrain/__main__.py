"""`python -m tolktrain`."""

import sys

from tolktrain.source_root import hide_source_root

if __name__ == "__main__":
    hide_source_root()
    from tolktrain.cli import program

    sys.exit(program())
