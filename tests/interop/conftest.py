"""Where the reference files are read from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `published_files`
