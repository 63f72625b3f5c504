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
    stages: dict[int, list[OwnTime]] = {}
    for time in times:
        stages.setdefault(time.stage, []).append(time)
    found = [_slowest_of(peers, step_seconds) for peers in stages.values() if len(peers) > 1]
    return max((slowest for slowest in found if slowest is not None), key=_excess, default=None)


def _slowest_of(peers: Sequence[OwnTime], step_seconds: float) -> Slowest:
    """The slowest of a stage's ranks, two or more. Rank 0 does this while all wait for it: n log n."""
    members: dict[int, list[OwnTime]] = {}
    for time in peers:
        members.setdefault(time.waits_with, []).append(time)
    # Less what each waited inside the forward pass, as far as one can tell.
    shortest = {group: min(time.compute for time in times) for group, times in members.items()}
    computes = [shortest[time.waits_with] for time in peers]
    usual = _medians_of_others([time.data + compute for time, compute in zip(peers, computes, strict=True)])
    excess = [time.data + computes[n] - usual[n] for n, time in enumerate(peers)]
    number = max(range(len(peers)), key=lambda n: (excess[n], -peers[n].rank))
    slowest, compute = peers[number], computes[number]
    beyond_data = slowest.data - _medians_of_others([time.data for time in peers])[number]
    beyond_compute = compute - _medians_of_others(computes)[number]
    slow_data = beyond_data >= beyond_compute
    together = tuple(sorted(time.rank for time in members[slowest.waits_with]))
    return Slowest(
        rank=slowest.rank,
        group=(slowest.rank,) if slow_data else together,
        seconds=slowest.data + compute,
        usual=usual[number],
        data_seconds=slowest.data,
        compute_seconds=compute,
        part="waiting for data" if slow_data else "computing",
        share=(slowest.data + compute - usual[number]) / max(step_seconds, 1e-9),
    )


def _excess(slowest: Slowest) -> tuple[float, int]:
    """What the slowest is chosen by; of equally slow ranks it is the first."""
    return slowest.seconds - slowest.usual, -slowest.rank


def _medians_of_others(values: Sequence[float]) -> list[float]:
    """For each of two or more values the median of all others: one sort for all of them."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ordered = [values[n] for n in order]
    half, odd = divmod(len(values) - 1, 2)  # of the number of others
    medians = [0.0] * len(values)
    for place, n in enumerate(order):
        # Without the value at `place`, whatever stood behind it moves forward by one.
        upper = ordered[half + (half >= place)]
        medians[n] = upper if odd else (ordered[half - 1 + (half - 1 >= place)] + upper) / 2
    return medians
