"""The command line: `tolktrain VERB CONFIG [dotted.key=value ...]`. One file per verb.

Only light modules are imported at import time, so that `--help` answers at once and signal handlers are installed
before torch is imported.
"""

import sys
from collections.abc import Sequence
from types import MappingProxyType

from tolktrain.cluster.signals import STOPPING_TRAINING, StopRequest

# Verbs that end with what is done after a signal, and their message after Ctrl-C.
_STOPPABLE = MappingProxyType({"train": STOPPING_TRAINING, "prepare": "stopping; finished parts are kept"})


def program() -> int:
    """The whole process. Signals are handled before everything else is imported."""
    stop = None
    if sys.argv[1:2] and sys.argv[1] in _STOPPABLE:
        stop = StopRequest(_STOPPABLE[sys.argv[1]])
        stop.install()
    from tolktrain.cli.entry import program

    return program(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """See `tolktrain.cli.entry.main`."""
    from tolktrain.cli.entry import main

    return main(arguments)
