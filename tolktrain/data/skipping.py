"""Data that training skips: which data step a training step reads."""

from collections.abc import Iterable, Iterator


class SkippedSteps:
    """Data steps of a stage that are skipped. Data step k is global batch k of the stage's order, from 0.

    The data step of a training step depends on the step and these ranges only, so that a run reads the same batches
    after a restart on any layout.
    """

    def __init__(self, ranges: Iterable[range] = ()) -> None:
        merged: list[range] = []
        for new in sorted(ranges, key=lambda one: one.start):
            if merged and new.start <= merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, new.stop))
            elif new:
                merged.append(new)
        self.ranges = tuple(merged)  # ordered and disjoint

    def data_step(self, step: int) -> int:
        """The data step that training step `step` of the stage reads."""
        for skipped in self.ranges:
            if skipped.start > step:
                break
            step += len(skipped)
        return step

    def segments(self, step: int) -> Iterator[tuple[int, int | None]]:
        """The data that is read from training step `step` on: the first data step of each segment, and the one before
        which it ends. The last segment has no end."""
        begin = self.data_step(step)
        for skipped in self.ranges:
            if skipped.start > begin:
                yield begin, skipped.start
                begin = skipped.stop
        yield begin, None
