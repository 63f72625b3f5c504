"""Sums over pairs of vectors, from which covariances and linear CKA follow without keeping the vectors."""

from functools import cached_property

import torch
from torch import Tensor


class PairMoments:
    """Sums over pairs (x, y) of vectors, in float64. Memory: 3 D^2 + 8 D + 5 numbers, however many pairs there are.

    All sums are of differences from the means of the first batch. No result depends on this point, but sums around the
    origin would lose digits, because states of language models have coordinates with large means.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origins: tuple[Tensor, Tensor] | None = None
        self._sums: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add n pairs, [n, D] each."""
        if not len(x):
            return
        x, y = x.double(), y.double()
        if self._origins is None:
            self._origins = x.mean(dim=0), y.mean(dim=0)
        x, y = x - self._origins[0], y - self._origins[1]
        p, q = x.square().sum(dim=1), y.square().sum(dim=1)
        found = (
            *(x.sum(dim=0), y.sum(dim=0)),
            *(x.T @ x, y.T @ y, x.T @ y),
            *(x.T @ p, y.T @ q, x.T @ q, y.T @ p),
            *(p.sum(), q.sum(), p @ p, q @ q, p @ q),
        )
        self._sums = tuple(a + b for a, b in zip(self._sums, found, strict=True)) if self._sums else found
        self.count += len(x)

    @property
    def width(self) -> int:
        """Coordinates of a vector (D)."""
        assert self._origins is not None
        return len(self._origins[0])

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Covariance matrices of x and of y, [D, D]."""
        sx, sy, xx, yy, *_ = self._sums
        return (
            (xx - torch.outer(sx, sx) / self.count) / self.count,
            (yy - torch.outer(sy, sy) / self.count) / self.count,
        )

    @cached_property
    def axes(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of x and of y: variances [D], largest first, and the principal axes as columns [D, D]."""
        found = [torch.linalg.eigh(matrix) for matrix in self.covariances()]
        x, y = ((values.flip(0).clamp(min=0), vectors.flip(1)) for values, vectors in found)
        return x, y

    def hsic(self) -> tuple[float, float, float]:
        """Unbiased estimates of HSIC with linear kernels, of (x, y), (x, x) and (y, y).

        With K and L the kernel matrices without their diagonals (Song et al. 2012, equation 5):
        [tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1] / (n (n - 3)). Needs n > 3.
        """
        sx, sy, xx, yy, xy, xp, yq, xq, yp, p, q, pp, qq, pq = self._sums

        def estimate(cross: Tensor, s: Tensor, t: Tensor, sq: Tensor, tp: Tensor, sums: tuple[Tensor, ...]) -> float:
            p_sum, q_sum, product = sums
            n = self.count
            trace = cross.square().sum() - product
            totals = (s @ s - p_sum) * (t @ t - q_sum)
            rows = s @ cross @ t - s @ sq - t @ tp + product
            return float((trace + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3)))

        return (
            estimate(xy, sx, sy, xq, yp, (p, q, pq)),
            estimate(xx, sx, sx, xp, xp, (p, p, pp)),
            estimate(yy, sy, sy, yq, yq, (q, q, qq)),
        )
