"""Long audio in windows that overlap, and windows of like length in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.units.base import Samples


@dataclass(frozen=True)
class FrameGrid:
    """The positions of a model's frames: frame t sees the samples from t * hop to t * hop + field."""

    hop: int  # samples
    field: int  # samples

    @classmethod
    def of_convolutions(cls, kernels: Sequence[int], strides: Sequence[int]) -> "FrameGrid":
        """Grid of convolutions one after the other, without padding."""
        hop, field = 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return cls(hop, field)

    def num_frames(self, num_samples: int) -> int:
        """Frames that fit into the audio; 0 if it is shorter than the field."""
        return max(0, (num_samples - self.field) // self.hop + 1)

    def cut(self, samples: Samples, start: int, end: int) -> Samples:
        """The samples that frames `start` to `end` see."""
        return samples[start * self.hop : (end - 1) * self.hop + self.field]


@dataclass(frozen=True)
class Window:
    """Frames `start` to `end` are computed together; `first` to `last` of them are used."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Windowing:
    """Length and overlap of windows, in frames."""

    length: int
    overlap: int

    @classmethod
    def of_seconds(cls, window: float, overlap: float, frames_per_second: float) -> "Windowing":
        """Rounded to frames. Raises `UserError` if the overlap leaves nothing of a window."""
        length, shared = round(window * frames_per_second), round(overlap * frames_per_second)
        if not 0 <= shared < length:
            raise UserError(
                f"window_seconds {window} and overlap_seconds {overlap} are {length} and {shared} frames; give an"
                " overlap that is shorter than the window"
            )
        return cls(length, shared)

    def windows(self, num_frames: int) -> list[Window]:
        """Windows over a waveform: one if all frames fit into it, otherwise windows of equal length.

        The last window begins earlier instead of being shorter. Of the frames that two neighbours share, each gives the
        half that is farther from its own edge.
        """
        if num_frames <= self.length:
            return [Window(0, num_frames, 0, num_frames)] if num_frames else []
        starts = [*range(0, num_frames - self.length, self.length - self.overlap), num_frames - self.length]
        edges = [0, *((b + a + self.length) // 2 for a, b in zip(starts, starts[1:], strict=False)), num_frames]
        return [Window(s, s + self.length, edges[i], edges[i + 1]) for i, s in enumerate(starts)]


def windows_with_context(num_frames: int, length: int, before: int, after: int) -> Iterator[Window]:
    """Windows of which `length` frames are used, each computed with the frames around them that these depend on."""
    for first in range(0, num_frames, length):
        last = min(first + length, num_frames)
        yield Window(max(0, first - before), min(num_frames, last + after), first, last)


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of `lengths` in batches of like length, whose number times longest length is at most `most`.

    A length above `most` is a batch of its own. The longest come first, so that memory runs out at once or never.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def run_windows(
    waveforms: Sequence[Samples],
    grid: FrameGrid,
    windowing: Windowing,
    most_samples: int,
    run: Callable[[list[int], list[Samples]], list[npt.NDArray[Any]]],
) -> list[list[npt.NDArray[Any]]]:
    """Cut waveforms into windows, run batches of them, and keep the used frames of each window in order.

    A waveform that fits into one window is given to `run` whole, the samples after its last frame included.

    Args:
        waveforms: mono waveforms.
        grid: frames of the model.
        windowing: windows of frames.
        most_samples: samples of a batch, padding to its longest window included; one window may have more.
        run: returns the frames [frames, ...] of each window, given its waveform's index in `waveforms` and its samples.

    Returns:
        For each waveform the used frames of its windows; nothing for a waveform without frames.
    """
    pieces: list[tuple[int, Window, Samples]] = []
    for index, samples in enumerate(waveforms):
        windows = windowing.windows(grid.num_frames(len(samples)))
        for window in windows:
            piece = samples if len(windows) == 1 else grid.cut(samples, window.start, window.end)
            pieces.append((index, window, piece))
    results: list[npt.NDArray[Any] | None] = [None] * len(pieces)
    for batch in batches([len(samples) for _, _, samples in pieces], most_samples):
        for place, frames in zip(batch, run([pieces[p][0] for p in batch], [pieces[p][2] for p in batch]), strict=True):
            window = pieces[place][1]
            assert len(frames) == window.end - window.start
            # A copy, so that the rest of the window does not stay in memory.
            results[place] = np.array(frames[window.first - window.start : window.last - window.start])
    joined: list[list[npt.NDArray[Any]]] = [[] for _ in waveforms]
    for (index, _, _), result in zip(pieces, results, strict=True):
        assert result is not None
        joined[index].append(result)
    return joined
