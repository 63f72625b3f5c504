"""Drawing frames from a stream, and nearest centroids."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.units.kmeans import NearestCentroid, draw_frames, first_hours, fit_centroids

FRAMES = np.arange(300, dtype=np.float32)[:, None] * np.ones(2, np.float32)


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 320), st.integers(0, 5))
def test_draw_does_not_depend_on_the_cut(cuts: list[int], most: int, seed: int) -> None:
    whole = draw_frames([FRAMES], most, seed)
    pieces = draw_frames(np.split(FRAMES, sorted(cuts)), most, seed)
    assert np.array_equal(whole, pieces)
    assert len(np.unique(whole[:, 0])) == len(whole) == min(most, 300)
    if most >= 300:
        assert np.array_equal(whole, FRAMES)


def test_draw_is_fair() -> None:
    """Each of 300 frames is among 60 drawn in a fifth of 2,000 draws; five standard deviations are 0.045."""
    counts = np.zeros(300)
    for seed in range(2000):
        counts[draw_frames([FRAMES[:70], FRAMES[70:]], 60, seed)[:, 0].astype(int)] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 0.045


def test_draw_leaves_its_input_alone() -> None:
    frames = FRAMES.copy()
    draw_frames([frames], 10, 0)
    assert np.array_equal(frames, FRAMES)


def test_hours_are_taken_and_no_more_is_read() -> None:
    read: list[int] = []

    def waveforms() -> Iterator[np.ndarray]:
        for index in range(10):
            read.append(index)
            yield np.full(3600, index, np.float32)

    taken = list(first_hours(waveforms(), 2.5, sample_rate=1))
    assert [len(waveform) for waveform in taken] == [3600, 3600, 1800]
    assert read == [0, 1, 2]
    assert sum(map(len, first_hours(waveforms(), 20, sample_rate=1))) == 36_000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_centroids(dtype: type) -> None:
    rng = np.random.default_rng(0)
    features, centroids = rng.normal(size=(1000, 7)).astype(dtype), rng.normal(size=(33, 7)).astype(dtype)
    distances = ((features[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)
    units = NearestCentroid(centroids)(features)
    assert units.shape == (1000, 1) and units.dtype == np.uint16
    assert np.array_equal(units[:, 0], distances.argmin(axis=1))


def test_the_first_of_equal_centroids_is_taken() -> None:
    assert NearestCentroid(np.ones((3, 2), np.float32))(np.zeros((2, 2), np.float32)).tolist() == [[0], [0]]


def test_centroids_are_reproducible_and_need_enough_frames() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(place, 0.1, (50, 3)) for place in (-5, 0, 5)]).astype(np.float32)
    centroids = fit_centroids(features, 3, 0)
    assert np.abs(np.sort(centroids[:, 0]) - [-5, 0, 5]).max() < 0.1
    assert np.array_equal(centroids, fit_centroids(features, 3, 0))
    with pytest.raises(UserError, match="2 frames cannot be fitted by 3 clusters"):
        fit_centroids(features[:2], 3, 0)
