"""Finds the rank that the others wait for, from the time that each rank needs for its own work. Pure functions.

Ranks of one pipeline stage do the same work, so they are compared with each other. Three limits apply:

- Members of a tensor group wait for each other inside the forward pass, and so do all data ranks under ZeRO 3, which
  gathers parameters there. The shortest time of such a group in the forward pass is taken for every member, because
  the slow member waits least. So slow computation is attributed to the group (under ZeRO 3 to no rank); slow data is
  still attributed to the rank.
- Pipeline stages do different work, so a rank without peers on its stage is not assessed.
- Slowness in the backward pass or the update alone is not detected, because the ranks' own time and their waiting are
  interleaved there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FACTOR = 1.3  # multiple of the median of the others from which a rank counts as slow
SHARE = 0.05  # of the step time that a slow rank must also cost: twice a median of a millisecond does not matter
PERSISTENT = 3  # consecutive findings before a warning


@dataclass(frozen=True)
class OwnTime:
    """Seconds per step that a rank needs for its own work, averaged over several steps."""

    rank: int
    stage: int  # pipeline stage
    waits_with: int  # group of ranks on this stage that wait for each other in the forward pass
    data: float  # waiting for its loader
    compute: float  # in the forward pass


@dataclass(frozen=True)
class Slowest:
    """The rank with the most time of its own, compared with the median of the others on its pipeline stage."""

    rank: int
    group: tuple[int, ...]  # ranks that may equally be the cause, including this one
    seconds: float  # per step, of its own work
    usual: float  # the median of the others
    data_seconds: float
    compute_seconds: float
    part: str  # where it is slower than the others
    share: float  # of the step time that it costs

    @property
    def factor(self) -> float:
        """Its time as a multiple of the median of the others."""
        return self.seconds / max(self.usual, 1e-9)

    @property
    def matters(self) -> bool:
        """Whether it deserves a warning if it persists."""
        return self.factor >= FACTOR and self.share >= SHARE


def find_slowest(times: Sequence[OwnTime], step_seconds: float) -> Slowest | None:
    """The rank with the most time above the median of its peers; None if no rank has peers.

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
    """The slowest of two or more ranks of a pipeline stage. In n log n, because all ranks wait for the result."""
    members: dict[int, list[OwnTime]] = {}
    for time in peers:
        members.setdefault(time.waits_with, []).append(time)
    # The estimated time in the forward pass without waiting for others.
    shortest = {group: min(time.compute for time in times) for group, times in members.items()}
    computes = [shortest[time.waits_with] for time in peers]
    usual = _medians_of_others([time.data + compute for time, compute in zip(peers, computes, strict=True)])
    excess = [time.data + computes[n] - usual[n] for n, time in enumerate(peers)]
    number = max(range(len(peers)), key=lambda n: (excess[n], -peers[n].rank))
    slowest, compute = peers[number], computes[number]
    beyond_data = slowest.data - _medians_of_others([time.data for time in peers])[number]
    beyond_compute = compute - _medians_of_others(computes)[number]
    slow_data = beyond_data >= beyond_compute
    group = tuple(sorted(time.rank for time in members[slowest.waits_with]))
    return Slowest(
        rank=slowest.rank,
        group=(slowest.rank,) if slow_data else group,
        seconds=slowest.data + compute,
        usual=usual[number],
        data_seconds=slowest.data,
        compute_seconds=compute,
        part="waiting for data" if slow_data else "computing",
        share=(slowest.data + compute - usual[number]) / max(step_seconds, 1e-9),
    )


def _excess(slowest: Slowest) -> tuple[float, int]:
    """The key by which the slowest rank is chosen; the first of equally slow ranks."""
    return slowest.seconds - slowest.usual, -slowest.rank


def _medians_of_others(values: Sequence[float]) -> list[float]:
    """The median of all other values, for each of two or more values. Sorts once."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ordered = [values[n] for n in order]
    half, odd = divmod(len(values) - 1, 2)  # of the number of others
    medians = [0.0] * len(values)
    for place, n in enumerate(order):
        # Without the value at `place`, all later values move forward by one.
        upper = ordered[half + (half >= place)]
        medians[n] = upper if odd else (ordered[half - 1 + (half - 1 >= place)] + upper) / 2
    return medians
