"""The command line: `tolktrain VERB CONFIG [dotted.key=value ...]`. One file per verb.

Only light modules are imported at import time, so that `--help` answers at once and signal handlers are installed
before torch is imported.
"""

from tolktrain.cli.entry import main, program

__all__ = ["main", "program"]
