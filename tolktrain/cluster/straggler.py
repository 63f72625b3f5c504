"""Which rank the others wait for, judged from the time that each needs for itself. Pure functions.

Ranks of one pipeline stage do the same work, so they are compared with each other. Three things cannot be told apart:

- members of a tensor group wait for each other inside the forward pass, and so do all data ranks under ZeRO 3, which
  gathers parameters there. Of such a group the shortest time in the forward pass is taken for every member, for the
  slow one waits least. A slow computation is then told of the group (under ZeRO 3 of nobody); slow data still of the
  rank.
- pipeline stages do different work: a rank without peers on its stage is not judged.
- what is slow in the backward pass or the update alone is not seen: there the ranks' own time and their waiting for
  others are interleaved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FACTOR = 1.3  # times the median of the others, from which on a rank is called slow
SHARE = 0.05  # of the step, that it must cost besides: twice the median of a millisecond matters to nobody
PERSISTENT = 3  # judgements in a row


@dataclass(frozen=True)
class OwnTime:
    """Seconds per step that a rank needs for itself, mean over some steps."""

    rank: int
    stage: int  # of the pipeline
    waits_with: int  # group of ranks on this stage that wait for each other in the forward pass
    data: float  # waiting for its loader
    compute: float  # in the forward pass


@dataclass(frozen=True)
class Slowest:
    """The rank that takes longest for itself, compared with the median of the others on its stage."""

    rank: int
    group: tuple[int, ...]  # ranks that may as well be the cause, this one included
    seconds: float  # per step, for itself
    usual: float  # the median of the others
    data_seconds: float
    compute_seconds: float
    part: str  # where it is slower than the others
    share: float  # of the step, that it costs

    @property
    def factor(self) -> float:
        """How many times the median of the others."""
        return self.seconds / max(self.usual, 1e-9)

    @property
    def matters(self) -> bool:
        """Whether it is worth a message, if it stays so."""
        return self.factor >= FACTOR and self.share >= SHARE


def find_slowest(times: Sequence[OwnTime], step_seconds: float) -> Slowest | None:
    """The rank with the most time beyond the median of its peers; None where no rank has any.

    Args:
        times: of all ranks.
        step_seconds: mean length of a step.
    """
    found = [slowest for time in times if (slowest := _compare(time, times, step_seconds)) is not None]
    return max(found, key=lambda slowest: (slowest.seconds - slowest.usual, -slowest.rank), default=None)


def _compare(time: OwnTime, times: Sequence[OwnTime], step_seconds: float) -> Slowest | None:
    others = [other for other in times if other.stage == time.stage and other.rank != time.rank]
    if not others:
        return None
    computes = {other.rank: _compute(other, times) for other in (time, *others)}
    compute = computes[time.rank]
    usual = median(other.data + computes[other.rank] for other in others)
    beyond_data = time.data - median(other.data for other in others)
    beyond_compute = compute - median(computes[other.rank] for other in others)
    together = [other.rank for other in others if other.waits_with == time.waits_with]
    slow_data = beyond_data >= beyond_compute
    return Slowest(
        rank=time.rank,
        group=(time.rank,) if slow_data else tuple(sorted([time.rank, *together])),
        seconds=time.data + compute,
        usual=usual,
        data_seconds=time.data,
        compute_seconds=compute,
        part="waiting for data" if slow_data else "computing",
        share=(time.data + compute - usual) / max(step_seconds, 1e-9),
    )


def _compute(time: OwnTime, times: Sequence[OwnTime]) -> float:
    """Less what it waited inside the forward pass, as far as one can tell."""
    return min(other.compute for other in times if (other.stage, other.waits_with) == (time.stage, time.waits_with))
