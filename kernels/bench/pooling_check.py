"""Numerics of the Triton layer pooling against float64, compared with eager PyTorch in the same type."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tolktrain_kernels.layer_pooling import PooledLayers, pool_layers, pool_layers_plain

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 6e-3}  # of the root-mean-square error ratio, for short sums
ROUNDING = 2.0**-24  # of float32, in which all sums are added up; of n terms the errors add up to sqrt(n) times that
# Two results of eager PyTorch that are both right differ by as much; below it the kernel may be the worse one. In bf16
# it is the error of cutting off bits, which is how the interpreter stores.
FLOORS = {torch.float32: 7e-7, torch.bfloat16: 4.5e-3}


@dataclass(frozen=True)
class Case:
    """What is pooled."""

    mode: str  # "static", "dynamic" or "both"
    num_layers: int
    width: int
    positions: tuple[int, ...]
    dtype: torch.dtype
    residual: bool = True


@dataclass(frozen=True)
class Deviation:
    """Error of one output or gradient: root mean square of the difference, over that of the exact values."""

    tensor: str
    ours: float
    eager: float  # of the plain form in the same type
    num_terms: int = 1  # of the longest sum on the way, where it is longer than TOLERANCES is made for

    def is_within(self, dtype: torch.dtype) -> bool:
        """Whether it is below the tolerance, and at most twice eager's."""
        tolerance = max(TOLERANCES[dtype], self.num_terms**0.5 * ROUNDING)
        return self.ours <= min(tolerance, max(2 * self.eager, FLOORS[dtype]))


def entries(case: str, dtype: torch.dtype, found: Iterable[Deviation]) -> list[tuple[str, str, float, float, bool]]:
    """Entries of the report for some deviations: (case, tensor, ours, eager PyTorch's, within the tolerance)."""
    return [(case, entry.tensor, entry.ours, entry.eager, entry.is_within(dtype)) for entry in found]


QUICK_CASES = tuple(
    Case(mode, num_layers, width, (5,), dtype)
    for mode, num_layers, width in (("both", 30, 576), ("static", 24, 100), ("dynamic", 3, 72))
    for dtype in TOLERANCES
)


def deviations(case: Case, device: str) -> list[Deviation]:
    """Errors of every output and gradient. On the CPU it needs Triton's interpreter (TRITON_INTERPRET=1)."""
    arguments, gradients = make_case(case)

    def run(pool: Callable[..., PooledLayers], dtype: torch.dtype, place: str) -> dict[str, Tensor]:
        moved = [None if t is None else t.to(place, dtype).requires_grad_() for t in arguments]
        return _outputs_and_gradients(pool, case.num_layers, moved, gradients)

    exact = run(pool_layers_plain, torch.float64, "cpu")
    eager = run(pool_layers_plain, case.dtype, device)
    ours = run(partial(pool_layers, backend="triton"), case.dtype, device)
    return [Deviation(name, _error(ours[name], exact[name]), _error(eager[name], exact[name])) for name in exact]


def make_case(case: Case) -> tuple[list[Tensor | None], list[Tensor]]:
    """States, w, W, b and residual, and gradients of the four outputs: float64, but exact in the case's type."""
    generator = torch.Generator().manual_seed(case.num_layers * case.width)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(case.dtype).double()

    num_layers, width, positions = case.num_layers, case.width, case.positions
    static, dynamic = case.mode != "dynamic", case.mode != "static"
    arguments = [
        *(random(*positions, width) for _ in range(num_layers)),
        random(num_layers) if static else None,
        (random(num_layers, width) / 2 ** round(width.bit_length() / 2)).to(case.dtype).double() if dynamic else None,
        random(num_layers) if dynamic else None,
        random(*positions, width) if case.residual else None,
    ]
    shapes = ((*positions, width), (*positions, width), (*positions, num_layers), positions)
    return arguments, [random(*shape) for shape in shapes]


def _outputs_and_gradients(
    pool: Callable[..., PooledLayers], num_layers: int, arguments: list[Tensor | None], gradients: list[Tensor]
) -> dict[str, Tensor]:
    found = pool(arguments[:num_layers], *arguments[num_layers:])
    made = {
        name: (output, gradient.to(output))
        for name, output, gradient in zip(found._fields, found, gradients, strict=True)
        if output is not None
    }
    names = [*(f"state {index}" for index in range(num_layers)), "w", "W", "b", "residual"]
    leaves = {name: leaf for name, leaf in zip(names, arguments, strict=True) if leaf is not None}
    derived = torch.autograd.grad([o for o, _ in made.values()], list(leaves.values()), [g for _, g in made.values()])
    return {name: output for name, (output, _) in made.items()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, derived, strict=True)
    }


def _error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape, (found.shape, exact.shape)
    if exact.numel() == 0:
        return 0.0
    found, exact = found.detach().double().cpu(), exact.detach()
    scale = exact.square().mean().sqrt()
    difference = (found - exact).square().mean().sqrt()
    return float(difference / scale) if scale else float(difference)
