"""Whether a rank's device multiplies matrices correctly, and how fast."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tolktrain.cluster.health.reports import Product

_DENSITY = 8  # one entry in so many is not zero


@dataclass(frozen=True)
class Effort:
    """Size and number of the measured matrix products."""

    size: int  # of the square matrices
    tile: int  # they repeat with this period
    repetitions: int  # of which the fastest counts
    seconds: float  # least time of a repetition
    warm_up_seconds: float


# A GPU needs time to raise its clock, and large matrices to be fully used. On CPUs, a repetition is shorter than a time
# slice of the scheduler, so that other processes on the same core do not distort the fastest repetition.
GPU = Effort(size=4096, tile=256, repetitions=5, seconds=0.03, warm_up_seconds=0.2)
CPU = Effort(size=256, tile=64, repetitions=8, seconds=0.0, warm_up_seconds=0.0)


def known_product(effort: Effort, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles a and b, and the tile c of the product of the matrices that repeat them: integers, int64 [tile, tile].

    NumPy computes c in integers, so it depends neither on the device nor on its library. Its entries are at most 256,
    so all partial sums are exact in bfloat16 too, in any order of summation.
    """
    random = np.random.Generator(np.random.PCG64(seed))  # leaves the training's random states alone
    a, b = ((drawn == 0).astype(np.int64) - (drawn == 1) for drawn in _drawn(random, effort.tile))
    c = (effort.size // effort.tile) * (a @ b)
    assert np.abs(c).max() <= 256
    return a, b, c


def measure_product(
    device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm
) -> Product:
    """Multiply known matrices and compare every element of each repetition's last product.

    A device that computes nothing may find everything equal, so the very last product is compared on the host too.
    Leaves no memory allocated. A failing device is reported, not raised, because the ranks gather the reports.

    Args:
        device: a GPU or the CPU.
        dtype: of the matrices; the precision of the training.
        multiply: the product; replaced in tests.
    """
    effort = GPU if device.type == "cuda" else CPU
    try:
        return _measure(effort, device, dtype, multiply)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Product(fault=f"cannot multiply matrices: {reason}")
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # the GPU has failed already
                torch.cuda.empty_cache()


def _drawn(random: np.random.Generator, tile: int) -> list[np.ndarray]:
    return [random.integers(0, 2 * _DENSITY, (tile, tile)) for _ in range(2)]


def _measure(
    effort: Effort, device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Product:
    tiles = effort.size // effort.tile
    a, b, c = (torch.from_numpy(tile).to(device, dtype) for tile in known_product(effort))
    left, right = a.repeat(tiles, tiles), b.repeat(tiles, tiles)

    def timed(count: int) -> tuple[Tensor, float]:
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(count):
            product = multiply(left, right)
        _wait_for(device)
        return product, time.perf_counter() - started

    timed(1)  # the first call loads the library
    count, seconds = 1, timed(1)[1]
    while seconds < effort.seconds:
        count = min(2 * count, round(count * effort.seconds / seconds) + 1)
        seconds = timed(count)[1]
    warm = time.perf_counter() + effort.warm_up_seconds
    while time.perf_counter() < warm:
        timed(count)
    best = float("inf")
    for _ in range(effort.repetitions):
        product, seconds = timed(count)
        best = min(best, seconds)
        if wrong := _num_wrong(product, c):
            return _wrong(product, wrong)
    if device.type != "cpu" and (wrong := _num_wrong(product.cpu(), torch.from_numpy(known_product(effort)[2]))):
        return _wrong(product, wrong)
    return Product(flops_per_second=count * 2 * effort.size**3 / best)


def _num_wrong(product: Tensor, tile: Tensor) -> int:
    """Number of elements that differ from `tile`, repeated. NaN differs from every number, so it counts as wrong."""
    size, tiles = len(tile), len(product) // len(tile)
    return int((product.view(tiles, size, tiles, size) != tile[None, :, None, :]).sum())


def _wrong(product: Tensor, wrong: int) -> Product:
    return Product(fault=f"computes wrongly: {wrong:,} of {product.numel():,} elements of a known product of matrices")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
