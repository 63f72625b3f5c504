"""Numerics of the cross-entropy of a linear head against float64, compared with all logits at once in its type."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tolktrain_kernels.backend import Backend
from tolktrain_kernels.bench.elementwise_check import relative_error
from tolktrain_kernels.bench.pooling_check import TOLERANCES, Deviation
from tolktrain_kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_plain


@dataclass(frozen=True)
class Case:
    """What is computed."""

    num_rows: int
    vocabulary: int
    width: int
    dtype: torch.dtype
    ignored: bool = False  # whether the last id counts for nothing; every third target is it

    def __str__(self) -> str:
        shape = f"{self.num_rows} x {self.width} over {self.vocabulary}"
        return f"{shape}, {str(self.dtype).removeprefix('torch.')}{', some ignored' if self.ignored else ''}"


QUICK_CASES = tuple(
    Case(num_rows, vocabulary, width, dtype, ignored)
    for num_rows, vocabulary, width, ignored in ((7, 502, 576, True), (5, 4097, 64, False))
    for dtype in TOLERANCES
)


def make_case(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """States [N, D] and weight [V, D], float64 but exact in the case's type; and targets [N].

    Logits are about N(0, 4), and the targets are drawn as they say. If all were unlikely, the interpreter would store
    -1 + p, which rounds to -1, as -0.996 for each: it cuts bits off.
    """
    generator = torch.Generator().manual_seed(case.vocabulary + case.num_rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden, weight = random(case.num_rows, case.width), random(case.vocabulary, case.width) * 2 / case.width**0.5
    logits = hidden @ weight.t()
    noise = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
    targets = (logits - (-noise.log()).log()).argmax(dim=1)
    if case.ignored:
        targets[::3] = case.vocabulary - 1
    return hidden.to(case.dtype).double(), weight.to(case.dtype).double(), targets


def deviations(case: Case, device: str, backend: Backend) -> list[Deviation]:
    """Errors of sum, terms and gradients. On the CPU backend triton needs the interpreter (TRITON_INTERPRET=1)."""
    hidden, weight, targets = make_case(case)

    def run(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype, place: str) -> list[Tensor]:
        leaves = [tensor.to(place, dtype).requires_grad_() for tensor in (hidden, weight)]
        found = form(*leaves, targets.to(place), ignored=case.vocabulary - 1 if case.ignored else None)
        return [*found, *torch.autograd.grad(0.37 * found[0], leaves)]

    exact = run(linear_cross_entropy_plain, torch.float64, "cpu")
    eager = run(linear_cross_entropy_plain, case.dtype, device)
    ours = run(partial(linear_cross_entropy, backend=backend), case.dtype, device)
    names = ("sum", "terms", "gradient of hidden", "gradient of weight")
    return [
        Deviation(name, relative_error(mine, true), relative_error(plain, true), num_terms=case.vocabulary)
        for name, mine, plain, true in zip(names, ours, eager, exact, strict=True)
    ]
