"""k-means over frames: drawing frames from a stream of audio, fitting centroids, finding the nearest."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.units.base import Frames, Samples

FRAMES_PER_CLUSTER = 500  # frames that k-means sees at most for each cluster; more hardly move the centroids
_BLOCK = 256  # frames whose distances are computed at a time: they stay in the processor's cache


def first_hours(waveforms: Iterable[Samples], hours: float, sample_rate: int) -> Iterator[Samples]:
    """Waveforms until they last `hours` together; the last one is cut, and no further one is read."""
    left = round(hours * 3600 * sample_rate)
    for waveform in waveforms:
        yield waveform[:left]
        left -= len(waveform)
        if left <= 0:
            return


def draw_frames(features: Iterable[npt.NDArray[np.float32]], most: int, seed: int) -> npt.NDArray[np.float32]:
    """At most `most` frames [n, dim] of all that come, each as likely as any other; all of them if they are no more.

    Depends on the frames, their order and the seed alone, not on how they are cut into arrays. Memory is bounded by
    `most` frames and the longest array. Raises `UserError` if there is no frame at all.
    """
    generator = np.random.default_rng(seed)
    first: list[npt.NDArray[np.float32]] = []
    drawn: npt.NDArray[np.float32] | None = None
    seen = 0
    for frames in features:
        if drawn is None:
            first.append(frames[: most - seen].copy())
            frames = frames[most - seen :]
            seen += len(first[-1])
            if seen < most:
                continue
            drawn = np.concatenate(first)
            first.clear()
        # Vitter's algorithm R: frame number i replaces a place drawn from the first i if there is such a place. One
        # number per frame, so that the stream of numbers does not depend on the cut.
        places = (generator.random(len(frames)) * np.arange(seen + 1, seen + len(frames) + 1)).astype(np.int64)
        for index in np.flatnonzero(places < most):
            drawn[places[index]] = frames[index]
        seen += len(frames)
    if not seen:
        raise UserError("there is no audio to fit a speech tokenizer on; give recordings that are not empty")
    return np.concatenate(first) if drawn is None else drawn


def fit_centroids(features: npt.NDArray[Any], num_clusters: int, seed: int) -> npt.NDArray[Any]:
    """Centroids [num_clusters, dim] of frames [frames, dim], in their precision. The same input gives the same result.

    Raises `UserError` if there are fewer frames than clusters, or if scikit-learn is missing.
    """
    if len(features) < num_clusters:
        raise UserError(f"{len(features)} frames cannot be fitted by {num_clusters} clusters; give more audio")
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise UserError("fitting a speech tokenizer needs scikit-learn; pip install 'tolktrain[audio]'") from None
    # With several threads the sums of a cluster are added up in the order in which threads finish.
    with threadpool_limits(limits=1):
        kmeans = KMeans(num_clusters, init="k-means++", n_init=1, max_iter=40, random_state=seed)
        kmeans.fit(features)
    centroids: npt.NDArray[Any] = kmeans.cluster_centers_
    return centroids


class NearestCentroid:
    """Finds the nearest of some centroids, in double precision, so that no near tie depends on the machine."""

    def __init__(self, centroids: npt.NDArray[Any]) -> None:
        """Centroids [num_clusters, dim]."""
        self._columns = centroids.astype(np.float64).T
        self._norms = (self._columns**2).sum(axis=0)

    def __call__(self, features: npt.NDArray[Any]) -> Frames:
        """Nearest centroid of each frame [frames, dim]: [frames, 1]; the first of equally near ones."""
        units = np.empty((len(features), 1), np.uint16)
        for start in range(0, len(features), _BLOCK):
            frames = features[start : start + _BLOCK].astype(np.float64)
            units[start : start + _BLOCK, 0] = (self._norms - 2 * frames @ self._columns).argmin(axis=1)
        return units
