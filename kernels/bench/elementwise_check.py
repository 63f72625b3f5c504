"""Numerics of the elementwise kernels against float64, compared with eager PyTorch in the same type."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tolktrain_kernels.bench.pooling_check import TOLERANCES, Deviation
from tolktrain_kernels.elementwise import Backend, add_rms_norm, rms_norm, rotate, swiglu

KERNELS = ("norm", "norm and residual", "swiglu", "rotation")
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """What is computed."""

    kernel: str  # of `KERNELS`
    shape: tuple[int, ...]  # of an output: [..., D]; heads [T, B, H, d] for the rotation
    dtype: torch.dtype

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Everything that has a gradient."""
        if self.kernel == "swiglu":
            return {"gate_up": (*self.shape[:-1], 2 * self.shape[-1])}
        if self.kernel == "rotation":
            return {"heads": self.shape}
        update = {"update": self.shape} if self.kernel == "norm and residual" else {}
        return {"hidden": self.shape, **update, "weight": self.shape[-1:]}

    def output_names(self) -> tuple[str, ...]:
        """Each output is of `shape`."""
        return ("sum", "normed") if self.kernel == "norm and residual" else ("output",)


QUICK_CASES = tuple(
    Case(kernel, shape, dtype)
    for kernel, shape in (
        ("norm", (5, 576)),
        ("norm and residual", (5, 960)),
        ("swiglu", (5, 1536)),
        ("rotation", (5, 2, 9, 64)),
        ("rotation", (3, 1, 2, 72)),
    )
    for dtype in TOLERANCES
)


def compute(kernel: str, inputs: Sequence[Tensor], angles: Sequence[Tensor], backend: Backend) -> tuple[Tensor, ...]:
    """Outputs of one kernel.

    Args:
        kernel: of `KERNELS`.
        inputs: in the order of `Case.input_shapes`.
        angles: cos and sin, for the rotation.
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
    return (rotate(inputs[0], cos, sin, backend),)


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

    shapes, outputs = case.input_shapes(), case.output_names()
    inputs, gradients = [random(shape) for shape in shapes.values()], [random(case.shape) for _ in outputs]
    # One position more than there are heads for.
    angles = make_angles(case.shape[0] + 1, case.shape[-1], "cpu") if case.kernel == "rotation" else []

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
