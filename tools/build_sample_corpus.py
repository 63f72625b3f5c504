"""The program that builds the embedded corpus."""

import sys

from sample_corpus.build import main

if __name__ == "__main__":
    sys.exit(main())
