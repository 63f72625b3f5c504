"""`tolktrain evaluate` of which rank 1 fails where its recordings are encoded, or where it scores.

Usage: failing_rank.py encode|score RUN --suite FILE.
"""

import sys
from typing import Any

from tolktrain import cli
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.evaluate import recordings
from tolktrain.evaluate.scorer import Scorer

PLACE, *ARGUMENTS = sys.argv[1:]


def fail(*_: Any) -> Any:
    """What a library might raise."""
    raise RuntimeError("the tokenizer's weights are gone")


if __name__ == "__main__":
    if ProcessEnvironment.detect().rank == 1:
        if PLACE == "encode":
            recordings._Worker.units = fail  # type: ignore[method-assign]
        else:
            Scorer.token_nll = fail  # type: ignore[method-assign]
    sys.exit(cli.main(["evaluate", *ARGUMENTS]))
