"""Subspaces and CKA from sums, against the definitions on whole matrices, and oracles."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from small_task import LAYER, moments_of, normal, small_sample, small_task
from torch import Tensor

from tolktrain.analyze.measures.cka import debiased_cka
from tolktrain.analyze.measures.subspaces import Subspaces

WIDTH = 12


def subspaces(x: Tensor, y: Tensor, dimensions: int = 4) -> dict:
    moments = {LAYER: moments_of(x, y)}
    return Subspaces(small_task(small_sample(len(x)), x.shape[1], dimensions, moments)).result()["layers"][LAYER]


def gram_cka(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """The definition, on n x n matrices: inner products after U-centring (Szekely and Rizzo 2014)."""

    def centred(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        gram = z @ z.T
        np.fill_diagonal(gram, 0.0)
        n = len(gram)
        rows = gram.sum(axis=1, keepdims=True) / (n - 2)
        gram = gram - rows - rows.T + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0.0)
        return gram

    a, b = centred(x), centred(y)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def related(rows: int) -> tuple[Tensor, Tensor]:
    """Vectors that share some of their variance, with unequal coordinates and means."""
    x = normal(rows, WIDTH, 1) * torch.linspace(0.3, 3, WIDTH) + 5
    return x, 0.5 * x @ normal(WIDTH, WIDTH, 2) + normal(rows, WIDTH, 3) - 20


@pytest.mark.parametrize("rows", [10, 300])
def test_cka_equals_the_definition(rows: int) -> None:
    x, y = related(rows)
    assert debiased_cka(moments_of(x, y)) == pytest.approx(gram_cka(x.numpy(), y.numpy()), rel=1e-9)


def test_cka_of_equal_and_unrelated_vectors() -> None:
    x = normal(400, WIDTH, 0)
    rotation = torch.linalg.qr(normal(WIDTH, WIDTH, 5))[0]
    assert debiased_cka(moments_of(x, 3 * x @ rotation + 7)) == pytest.approx(1.0, abs=1e-12)
    # Fewer words than dimensions: the plain estimate would be near 1 / 2.
    drawn = [debiased_cka(moments_of(normal(50, 60, seed), normal(50, 60, seed + 100))) for seed in range(20)]
    assert abs(np.mean([value for value in drawn if value is not None])) < 0.02
    constant = torch.ones(50, WIDTH, dtype=torch.float64)
    assert debiased_cka(moments_of(x[:50], constant)) is None


def test_cka_is_not_spoilt_by_large_means() -> None:
    x, y = related(300)
    shift = torch.zeros(WIDTH, dtype=torch.float64)
    shift[3] = 1e5
    expected = gram_cka(x.numpy(), y.numpy())
    assert debiased_cka(moments_of(x + shift, y - shift)) == pytest.approx(expected, rel=1e-5)


def test_subspaces_equal_explicit_projections_and_scipy() -> None:
    x, y = related(300)
    found = subspaces(x, y)
    u, v = (np.linalg.svd(z.numpy() - z.numpy().mean(axis=0))[2][:4].T for z in (x, y))
    projection = np.trace(u @ u.T @ v @ v.T) / 4
    assert found["overlap"] == pytest.approx(projection, rel=1e-9)
    assert found["chance"] == pytest.approx(4 / WIDTH)
    angles = np.sort(np.rad2deg(scipy.linalg.subspace_angles(u, v)))
    np.testing.assert_allclose(found["angles"], angles, atol=1e-5)
    assert found["angle"] == pytest.approx(angles.mean())


def test_dimensions_that_hold_most_of_the_variance() -> None:
    x, y = related(300)
    found = subspaces(x, y)
    spectra = [np.linalg.eigvalsh(np.cov(z.numpy().T))[::-1] for z in (x, y)]
    enough = max(int(np.searchsorted(np.cumsum(s) / s.sum(), 0.9)) + 1 for s in spectra)
    assert found["dimensions_90"] == enough and found["chance_90"] == pytest.approx(enough / WIDTH)
    u, v = (np.linalg.svd(z.numpy() - z.numpy().mean(axis=0))[2][:enough].T for z in (x, y))
    assert found["overlap_90"] == pytest.approx((np.linalg.norm(u.T @ v) ** 2) / enough, rel=1e-9)


def test_oracles_of_the_overlap() -> None:
    x = normal(500, WIDTH, 0) * torch.arange(1, WIDTH + 1)
    equal = subspaces(x, -2 * x + 3)
    assert equal["overlap"] == pytest.approx(1.0) and equal["angle"] == pytest.approx(0.0, abs=1e-4)
    swapped = subspaces(x, x.flip(1))
    assert swapped["overlap"] == pytest.approx(0.0, abs=0.05) and swapped["angle"] > 80
    # Unrelated axes: k / D on average, and the angle of random subspaces.
    drawn = [subspaces(normal(200, 48, seed), normal(200, 48, seed + 50), 6) for seed in range(20)]
    assert np.mean([one["overlap"] for one in drawn]) == pytest.approx(6 / 48, abs=0.02)
    assert np.mean([one["angle"] for one in drawn]) == pytest.approx(drawn[0]["chance_angle"], abs=5)


def test_sums_do_not_depend_on_batches_or_order() -> None:
    x, y = related(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    whole, parts, shuffled = moments_of(x, y, 300), moments_of(x, y, 7), moments_of(x[order], y[order], 31)
    for other in (parts, shuffled):
        assert debiased_cka(other) == pytest.approx(debiased_cka(whole), rel=1e-9)
        for a, b in zip(whole.covariances(), other.covariances(), strict=True):
            torch.testing.assert_close(a, b)
    expected = np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose(parts.covariances()[0].numpy(), expected, rtol=1e-9)
