"""Numerics of the elementwise kernels against float64, compared with eager PyTorch in the same type."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tolktrain_kernels.bench.pooling_check import TOLERANCES, Deviation
from tolktrain_kernels.elementwise import Backend, add_rms_norm, rms_norm, split_heads, swiglu

KERNELS = ("norm", "norm and residual", "swiglu", "heads")
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """What is computed."""

    kernel: str  # of `KERNELS`
    shape: tuple[int, ...]  # of an output: [..., D]; of heads [T, B, G, r, d] (groups, queries of each)
    dtype: torch.dtype

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Everything that has a gradient."""
        if self.kernel == "swiglu":
            return {"gate_up": (*self.shape[:-1], 2 * self.shape[-1])}
        if self.kernel == "heads":
            *outer, queries, width = self.shape
            return {"product": (*outer, (queries + 2) * width)}
        update = {"update": self.shape} if self.kernel == "norm and residual" else {}
        return {"hidden": self.shape, **update, "weight": self.shape[-1:]}

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Everything that is computed."""
        if self.kernel == "heads":
            *outer, groups, queries, width = self.shape
            shared = (*outer, groups, width)
            return {"queries": (*outer, groups * queries, width), "keys": shared, "values": shared}
        names = ("sum", "normed") if self.kernel == "norm and residual" else ("output",)
        return dict.fromkeys(names, self.shape)


QUICK_CASES = tuple(
    Case(kernel, shape, dtype)
    for kernel, shape in (
        ("norm", (5, 576)),
        ("norm and residual", (5, 960)),
        ("swiglu", (5, 1536)),
        ("heads", (5, 2, 3, 3, 64)),
        ("heads", (3, 1, 2, 1, 72)),
    )
    for dtype in TOLERANCES
)


def compute(kernel: str, inputs: Sequence[Tensor], angles: Sequence[Tensor], backend: Backend) -> tuple[Tensor, ...]:
    """Outputs of one kernel.

    Args:
        kernel: of `KERNELS`.
        inputs: in the order of `Case.input_shapes`.
        angles: cos and sin, for the heads.
        backend: as in `elementwise`.
    """
    if kernel == "norm":
        hidden, weight = inputs
        return (rms_norm(hidden, weight, EPS, backend),)
    if kernel == "norm and residual":
        hidden, update, weight = inputs
        return add_rms_norm(hidden, update, weight, EPS, backend)
    if kernel == "swiglu":
        return (swiglu(inputs[0], backend),)
    cos, sin = angles
    return split_heads(inputs[0], cos, sin, backend)


def make_angles(length: int, width: int, device: str | torch.device) -> list[Tensor]:
    """Cosine and signed sine [length, 1, 1, width] float32."""
    frequencies = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)[:, None, None]
    cos, sin = angles.cos(), angles.sin()
    return [torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)]


def deviations(case: Case, device: str) -> list[Deviation]:
    """Errors of every output and gradient. On the CPU it needs Triton's interpreter (TRITON_INTERPRET=1)."""
    generator = torch.Generator().manual_seed(sum(case.shape))

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(case.dtype).double()

    shapes, outputs = case.input_shapes(), case.output_shapes()
    inputs, gradients = [random(shape) for shape in shapes.values()], [random(shape) for shape in outputs.values()]
    # One position more than there are heads for.
    angles = make_angles(case.shape[0] + 1, case.shape[-1], "cpu") if case.kernel == "heads" else []

    def run(backend: Backend, dtype: torch.dtype, place: str) -> list[Tensor]:
        leaves = [tensor.to(place, dtype).requires_grad_() for tensor in inputs]
        found = compute(case.kernel, leaves, [angle.to(place) for angle in angles], backend)
        return [*found, *torch.autograd.grad(found, leaves, [gradient.to(place, dtype) for gradient in gradients])]

    exact = run("torch", torch.float64, "cpu")
    eager = run("torch", case.dtype, device)
    ours = run("triton", case.dtype, device)
    names = [*outputs, *(f"gradient of {name}" for name in shapes)]
    return [
        Deviation(name, relative_error(mine, true), relative_error(plain, true))
        for name, mine, plain, true in zip(names, ours, eager, exact, strict=True)
    ]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, over that of the exact values."""
    assert found.shape == exact.shape, (found.shape, exact.shape)
    if exact.numel() == 0:
        return 0.0
    found, exact = found.detach().double().cpu(), exact.detach()
    scale = exact.square().mean().sqrt()
    difference = (found - exact).square().mean().sqrt()
    return float(difference / scale) if scale else float(difference)
