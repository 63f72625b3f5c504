"""Whether a rank's device multiplies matrices rightly, and how fast."""

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
    """How large the products are, and how often they are made."""

    size: int  # of the square matrices
    tile: int  # they repeat with this period
    repetitions: int  # of which the fastest counts
    seconds: float  # least time of a repetition
    warm_up_seconds: float


# A GPU needs a while to raise its clock, and large matrices to be busy. On CPUs, a repetition is shorter than the time
# that a process is left alone by the others which share its core.
GPU = Effort(size=4096, tile=256, repetitions=5, seconds=0.03, warm_up_seconds=0.2)
CPU = Effort(size=256, tile=64, repetitions=8, seconds=0.0, warm_up_seconds=0.0)


def known_product(effort: Effort, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles a and b, and the tile c of the product of the matrices made of them: whole numbers, int64 [tile, tile].

    c is found by NumPy in integers, so it does not come from the device, nor from its library. Its entries are below
    256: all that can occur on the way is exact in bfloat16 too, in whatever order a library adds.
    """
    random = np.random.Generator(np.random.PCG64(seed))  # leaves the training's random states alone
    a, b = ((drawn == 0).astype(np.int64) - (drawn == 1) for drawn in _drawn(random, effort.tile))
    c = (effort.size // effort.tile) * (a @ b)
    assert np.abs(c).max() <= 256
    return a, b, c


def measure_product(
    device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm
) -> Product:
    """Multiply known matrices and compare every element of every repetition's last product.

    Leaves no memory allocated. A device that cannot do it is reported, not raised: the others must hear of it.

    Args:
        device: a GPU or the CPU.
        dtype: of the matrices: what is trained in.
        multiply: the product, replaced in tests.
    """
    effort = GPU if device.type == "cuda" else CPU
    try:
        return _measure(effort, device, dtype, multiply)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Product(fault=f"cannot multiply matrices: {reason}")
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # of a GPU that has failed already
                torch.cuda.empty_cache()


def _drawn(random: np.random.Generator, tile: int) -> list[np.ndarray]:
    return [random.integers(0, 2 * _DENSITY, (tile, tile)) for _ in range(2)]


def _measure(
    effort: Effort, device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Product:
    tiles = effort.size // effort.tile
    a, b, c = (torch.from_numpy(tile).to(device, dtype) for tile in known_product(effort))
    left, right = a.repeat(tiles, tiles), b.repeat(tiles, tiles)
    expected = c[None, :, None, :]

    def timed(count: int) -> tuple[Tensor, float]:
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(count):
            product = multiply(left, right)
        _wait_for(device)
        return product, time.perf_counter() - started

    timed(1)  # loads the library
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
        # Not a number differs from everything, as it should here.
        wrong = int((product.view(tiles, effort.tile, tiles, effort.tile) != expected).sum())
        if wrong:
            return Product(
                fault=f"computes wrongly: {wrong:,} of {product.numel():,} elements of a known product of matrices"
            )
    return Product(flops_per_second=count * 2 * effort.size**3 / best)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
