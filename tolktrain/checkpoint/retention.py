"""Which checkpoints are kept. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The configured rules for keeping checkpoints."""

    last: int  # number of latest checkpoints
    every_steps: int | None = None  # checkpoints whose step this divides are never removed
    best: int = 0  # those with the lowest metric


@dataclass(frozen=True)
class Candidate:
    """The properties of a checkpoint that decide whether it is kept."""

    step: int
    complete: bool  # all its files exist in full size
    metric: float | None = None  # by which the best are chosen, lower is better; None if it has none


def choose_kept(candidates: Sequence[Candidate], retention: Retention) -> set[int]:
    """Steps of the checkpoints to keep.

    Incomplete checkpoints do not count as latest or best, so that they never displace a complete one. They are kept as
    long as they are not older than the latest kept ones, because somebody may want to repair them.
    """
    complete = sorted((c for c in candidates if c.complete), key=lambda c: c.step, reverse=True)
    if not complete:
        return {candidate.step for candidate in candidates}
    kept = {candidate.step for candidate in complete[: max(1, retention.last)]}
    kept |= {c.step for c in candidates if not c.complete and c.step >= min(kept)}
    if retention.every_steps is not None:
        kept |= {candidate.step for candidate in complete if candidate.step % retention.every_steps == 0}
    rated = [c for c in complete if c.metric is not None and math.isfinite(c.metric)]
    # If two metrics are equal, the later checkpoint is kept.
    rated.sort(key=lambda c: (c.metric, -c.step))
    return kept | {candidate.step for candidate in rated[: retention.best]}
