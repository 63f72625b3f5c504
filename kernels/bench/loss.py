"""Cross-entropy of a linear head: the memory of its logits, and the time of computing them in chunks."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tolktrain_kernels.bench.loss_check import QUICK_CASES, Case, deviations
from tolktrain_kernels.bench.measure import Plan, Row, compiled, measure
from tolktrain_kernels.bench.pooling_check import entries
from tolktrain_kernels.compilation import Build
from tolktrain_kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_plain

# Of states [N, D], weight [V, D] and targets [N]: the sum [], and what else there is.
Provider = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]

NOTE = (
    "The peak is the figure of interest. Matrix products dominate the time, so the share of copy means little."
    " `forward` is without gradients, as in evaluation. In `both`, chunks compute their gradients in the forward pass."
)
# N, V, D: a text head, and one of speech, of models of 150M, 400M and 2B parameters.
GPU_SHAPES = tuple((8192, vocabulary, width) for vocabulary in (49152, 502) for width in (576, 960, 2048))
CPU_SHAPES = ((4096, 8192, 576), (4096, 502, 576))  # the first in two chunks
MODES = ("forward", "both")


def rows(plan: Plan) -> Iterator[Row]:
    """Measure every provider, one after the other: bf16 on a GPU, float32 on the CPU."""
    for case in cases(plan):
        for name, provider in providers(plan.device).items():
            yield from measure_provider(plan, name, provider, case)


def cases(plan: Plan) -> list[Case]:
    """Every head."""
    shapes, dtype = (GPU_SHAPES, torch.bfloat16) if plan.device == "cuda" else (CPU_SHAPES, torch.float32)
    return [Case(rows // 16 if plan.quick else rows, vocabulary, width, dtype) for rows, vocabulary, width in shapes]


def builds() -> list[Build]:
    """The Triton kernel at the widths of the heads."""
    from tolktrain_kernels.cross_entropy_builds import builds

    return builds()


def numerics(device: str) -> Iterator[tuple[str, str, float, float, bool]]:
    """Errors against float64, as `pooling_check.entries` gives them."""
    for case in QUICK_CASES:
        yield from entries(f"loss {case}", case.dtype, deviations(case, device, "triton"))


def least_bytes(mode: str, case: Case) -> int:
    """Bytes to move: states, weight and targets in, float32 terms out; with the gradients, these out too."""
    inputs = (case.num_rows + case.vocabulary) * case.width * case.dtype.itemsize
    return inputs * (2 if mode == "both" else 1) + case.num_rows * (8 + 4)


def measure_provider(plan: Plan, name: str, provider: Provider, case: Case) -> Iterator[Row]:
    """Two rows of one provider."""
    generator = torch.Generator(plan.device).manual_seed(0)
    leaves = [
        torch.randn(count, case.width, dtype=case.dtype, device=plan.device, generator=generator)
        for count in (case.num_rows, case.vocabulary)
    ]
    leaves[1] *= 2 / case.width**0.5
    targets = torch.randint(0, case.vocabulary, (case.num_rows,), device=plan.device, generator=generator)

    def forward() -> Tensor:
        with torch.no_grad():
            return provider(leaves[0], leaves[1], targets)[0]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(provider(leaves[0], leaves[1], targets)[0], leaves)

    for mode, run in zip(MODES, (forward, both), strict=True):
        for leaf in leaves:
            leaf.requires_grad_(mode == "both")
        yield measure(
            plan,
            run,
            kernel="loss",
            provider=name,
            mode=mode,
            shape=f"{case.num_rows} x {case.width}, {case.vocabulary} ids",
            dtype=str(case.dtype).removeprefix("torch."),
            least=least_bytes(mode, case),
        )


def providers(device: str) -> dict[str, Provider]:
    """All logits at once first; on a GPU also compiled, ours in Triton, and Liger's where it is installed."""
    found: dict[str, Provider] = {"full logits": linear_cross_entropy_plain, "chunks": linear_cross_entropy}
    if device == "cuda":
        found["compiled"] = compiled(linear_cross_entropy_plain)
        found["triton"] = triton_provider()
        if importlib.util.find_spec("liger_kernel") is not None:
            found["liger"] = _liger
    return found


def triton_provider() -> Provider:
    """Ours."""
    return partial(linear_cross_entropy, backend="triton")


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Liger's, under the same contract: the sum, and the weight's gradient added up in float32."""
    # Not ours to depend on: it need not be installed for the types to be checked.
    function = importlib.import_module("liger_kernel.ops").LigerFusedLinearCrossEntropyFunction
    # No bias, no class weights, id -100 ignored, no squared normalizer, no smoothing; no soft cap.
    found: tuple[Tensor, ...] = function.apply(
        hidden, weight, targets, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32
    )
    return found
