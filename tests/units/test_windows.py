"""Windows and batches as properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.units.windows import FrameGrid, Windowing, batches, run_windows

LAYERS = st.lists(st.integers(1, 5).flatmap(lambda stride: st.tuples(st.integers(1, 10), st.just(stride))), max_size=4)


@given(LAYERS, st.integers(0, 3000))
def test_grid_is_that_of_the_convolutions(layers: list[tuple[int, int]], num_samples: int) -> None:
    kernels, strides = [kernel for kernel, _ in layers], [stride for _, stride in layers]
    length = num_samples
    for kernel, stride in layers:
        length = (length - kernel) // stride + 1 if length >= kernel else 0
    grid = FrameGrid.of_convolutions(kernels, strides)
    assert grid.num_frames(num_samples) == length
    assert grid.hop == math.prod(strides)


def test_mhubert_at_25_hz() -> None:
    grid = FrameGrid.of_convolutions((10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2))
    assert (grid.hop, grid.field) == (640, 720)


WINDOWING = st.integers(1, 40).flatmap(lambda length: st.builds(Windowing, st.just(length), st.integers(0, length - 1)))


@given(WINDOWING, st.integers(0, 300))
def test_every_frame_is_used_once_and_far_from_edges(windowing: Windowing, num_frames: int) -> None:
    windows = windowing.windows(num_frames)
    used = [frame for window in windows for frame in range(window.first, window.last)]
    assert used == list(range(num_frames))
    if num_frames <= windowing.length:
        assert len(windows) <= 1
    for window in windows:
        assert window.end - window.start == min(windowing.length, num_frames)
        assert window.start <= window.first and window.last <= window.end
        margin = windowing.overlap // 2
        assert window.start == 0 or window.first - window.start >= margin
        assert window.end == num_frames or window.end - window.last >= margin


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(0, 400))
def test_batches_are_complete_bounded_and_alike(lengths: list[int], most: int) -> None:
    found = batches(lengths, most)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    in_order = [lengths[index] for batch in found for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= most
    assert found == batches(lengths, most)


@given(WINDOWING, st.lists(st.integers(0, 400), max_size=5), st.integers(0, 800))
def test_frames_come_from_their_place_in_their_waveform(windowing: Windowing, lengths: list[int], most: int) -> None:
    grid = FrameGrid(3, 5)
    waveforms = [np.arange(length, dtype=np.float32) + 1000 * index for index, length in enumerate(lengths)]

    def run(indices: list[int], pieces: list[np.ndarray]) -> list[np.ndarray]:
        assert len(pieces) == 1 or len(pieces) * max(map(len, pieces)) <= most
        return [
            np.array([[index, *piece[3 * t : 3 * t + 5]] for t in range(grid.num_frames(len(piece)))])
            for index, piece in zip(indices, pieces, strict=True)
        ]

    found = run_windows(waveforms, grid, windowing, most, run)
    for index, (waveform, parts) in enumerate(zip(waveforms, found, strict=True)):
        expected = [[index, *waveform[3 * t : 3 * t + 5]] for t in range(max(0, (len(waveform) - 5) // 3 + 1))]
        assert [row.tolist() for part in parts for row in part] == [list(map(float, row)) for row in expected]


def test_a_waveform_of_one_window_is_given_whole() -> None:
    seen: list[int] = []

    def run(indices: list[int], pieces: list[np.ndarray]) -> list[np.ndarray]:
        seen.extend(map(len, pieces))
        return [np.zeros((FrameGrid(4, 4).num_frames(len(piece)), 1)) for piece in pieces]

    run_windows([np.zeros(43, np.float32)], FrameGrid(4, 4), Windowing(10, 2), 0, run)
    run_windows([np.zeros(47, np.float32)], FrameGrid(4, 4), Windowing(10, 2), 0, run)
    assert seen == [43, 40, 40]


@pytest.mark.parametrize(("window", "overlap"), [(1.0, 1.0), (0.01, 0.0), (1.0, 2.0)])
def test_overlap_must_leave_something(window: float, overlap: float) -> None:
    with pytest.raises(UserError, match="shorter than the window"):
        Windowing.of_seconds(window, overlap, 25.0)
