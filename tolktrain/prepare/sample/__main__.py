"""The program that builds the embedded corpus."""

import sys

from tolktrain.prepare.sample.build import main

if __name__ == "__main__":
    sys.exit(main())
