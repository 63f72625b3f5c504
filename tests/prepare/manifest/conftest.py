"""Makes what the tests of manifests share importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `manifest_reading`
