"""Weighted layer pooling (both averages, residual, entropy): the bandwidth of each implementation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tolktrain_kernels.bench.measure import MODES, Plan, Row, compiled, measure_modes
from tolktrain_kernels.bench.pooling_check import QUICK_CASES, Case, deviations, entries
from tolktrain_kernels.bench.reference_pooling import published_pooling
from tolktrain_kernels.compilation import Build
from tolktrain_kernels.layer_pooling import PooledLayers, pool_layers, pool_layers_plain

Provider = Callable[..., PooledLayers]


@dataclass(frozen=True)
class Shape:
    """What is pooled."""

    num_layers: int
    width: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.num_layers} x {self.width}, {self.num_tokens} tokens"


# The models of 150M, 400M and 2B parameters, and a larger one.
GPU_SHAPES = (Shape(30, 576, 16384), Shape(32, 960, 16384), Shape(24, 2048, 16384), Shape(32, 4096, 8192))
CPU_SHAPES = (Shape(30, 576, 2048), Shape(32, 960, 1024), Shape(24, 2048, 512))


def rows(plan: Plan) -> Iterator[Row]:
    """Measure every provider, one after the other: bf16 on a GPU, bf16 and float32 on the CPU."""
    shapes: Sequence[Shape] = GPU_SHAPES if plan.device == "cuda" else CPU_SHAPES
    if plan.quick:
        shapes = [Shape(shape.num_layers, shape.width, max(16, shape.num_tokens // 16)) for shape in shapes[:2]]
    dtypes = (torch.bfloat16,) if plan.device == "cuda" else (torch.bfloat16, torch.float32)
    for shape in shapes:
        for dtype in dtypes:
            for name, pool in _providers(plan.device).items():
                yield from measure_provider(plan, name, pool, shape, dtype)


def builds() -> list[Build]:
    """Every shipped setting of the Triton kernels."""
    from tolktrain_kernels.layer_pooling_builds import builds

    return builds()


def numerics(device: str) -> Iterator[tuple[str, str, float, float, bool]]:
    """Errors against float64, as `pooling_check.entries` gives them."""
    for case in QUICK_CASES:
        yield from entries(_name(case), case.dtype, deviations(case, device))


def _name(case: Case) -> str:
    return f"pooling {case.mode}, {case.num_layers} x {case.width}, {str(case.dtype).removeprefix('torch.')}"


def least_bytes(mode: str, shape: Shape, element_size: int) -> int:
    """Bytes to move: states, residual in, average, h_static out; backward, states, g, h_static in and dh out."""
    tensors = {"forward": shape.num_layers + 3, "backward": 2 * shape.num_layers + 2}
    count = sum(tensors.values()) if mode == "both" else tensors[mode]
    return count * shape.num_tokens * shape.width * element_size


def measure_provider(plan: Plan, name: str, pool: Provider, shape: Shape, dtype: torch.dtype) -> Iterator[Row]:
    """Three rows of one provider; the reference has its weights in float32, the others in the states' type."""
    weights_dtype = torch.float32 if name.startswith("published") else dtype
    states, weights, gradients = _inputs(plan.device, shape, dtype, weights_dtype)

    def forward() -> tuple[Tensor, Tensor]:
        found = pool(states, *weights)
        assert found.entropy is not None
        return found.pooled, found.entropy

    least = {mode: least_bytes(mode, shape, dtype.itemsize) for mode in MODES}
    return measure_modes(
        plan,
        forward,
        [*states, *weights],
        gradients,
        kernel="pooling",
        provider=name,
        shape=str(shape),
        dtype=dtype,
        least=least,
    )


def _providers(device: str) -> dict[str, Provider]:
    # The CPU's compiled code is not what anybody trains with; the list is what it computes with.
    found: dict[str, Provider] = {"published": published_pooling, "list": pool_layers_plain}
    if device == "cuda":
        found["published, compiled"] = compiled(published_pooling)
        found["list, compiled"] = compiled(pool_layers_plain)
        found["triton"] = partial(pool_layers, backend="triton")
    return found


def _inputs(
    device: str, shape: Shape, dtype: torch.dtype, weights_dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.num_tokens, shape.width)

    def random(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*size, dtype=dtype, device=device, generator=generator).requires_grad_()

    states = [random(*size, dtype=dtype) for _ in range(shape.num_layers)]
    weights = [
        random(shape.num_layers, dtype=weights_dtype),
        random(shape.num_layers, shape.width, dtype=weights_dtype),
        random(shape.num_layers, dtype=weights_dtype),
        random(*size, dtype=dtype),
    ]
    entropy = torch.full((shape.num_tokens,), -0.01, device=device)
    return states, weights, [random(*size, dtype=dtype).detach(), entropy]
