"""Makes the helpers of this folder importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `evaluated_runs`
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # for `parsed_page`
