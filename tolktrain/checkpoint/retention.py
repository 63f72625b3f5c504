"""Which checkpoints are kept. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What the configuration says about keeping."""

    last: int  # newest ones
    every_steps: int | None = None  # every one whose step this divides, for ever
    best: int = 0  # those with the lowest metric


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as far as keeping it is concerned."""

    step: int
    complete: bool  # all its files are there in full size
    metric: float | None = None  # what "best" goes by, lower is better; None if it has none


def choose_kept(candidates: Sequence[Candidate], retention: Retention) -> set[int]:
    """Steps of the checkpoints to keep.

    Incomplete ones do not count as newest or best, so that they never push out a good one; they are kept as long as
    they are among the newest, for somebody may want to mend them.
    """
    complete = sorted((c for c in candidates if c.complete), key=lambda c: c.step, reverse=True)
    if not complete:
        return {candidate.step for candidate in candidates}
    kept = {candidate.step for candidate in complete[: max(1, retention.last)]}
    kept |= {c.step for c in candidates if not c.complete and c.step >= min(kept)}
    if retention.every_steps is not None:
        kept |= {candidate.step for candidate in complete if candidate.step % retention.every_steps == 0}
    rated = [c for c in complete if c.metric is not None and math.isfinite(c.metric)]
    # Of equally good ones the later.
    rated.sort(key=lambda c: (c.metric, -c.step))
    return kept | {candidate.step for candidate in rated[: retention.best]}
