"""The operations between a transformer layer's matrix products: the bandwidth of each implementation.

Timed only on a GPU, because the CPU has only the plain implementation.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tolktrain_kernels.bench.elementwise_check import EPS, KERNELS, QUICK_CASES, Case, compute, deviations, make_angles
from tolktrain_kernels.bench.measure import MODES, Plan, Row, compiled, measure_modes
from tolktrain_kernels.bench.pooling_check import entries
from tolktrain_kernels.compilation import Build

Provider = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]

NUM_TOKENS, BATCH_SIZE = 16384, 8
# Of the models of 150M, 400M and 2B parameters.
HIDDEN_WIDTHS = (576, 960, 2048)
FFN_WIDTHS = (1536, 2560, 8192)
HEADS = ((3, 3, 64), (5, 3, 64), (32, 1, 64))  # groups, queries of each, width


def rows(plan: Plan) -> Iterator[Row]:
    """Measure every provider in bf16, one after the other; nothing without a GPU."""
    if plan.device != "cuda":
        return
    num_tokens = NUM_TOKENS // 16 if plan.quick else NUM_TOKENS
    for case in cases(num_tokens, BATCH_SIZE):
        for name, provider in providers(case.kernel, plan.device).items():
            yield from measure_provider(plan, name, provider, case)


def cases(num_tokens: int, batch_size: int) -> list[Case]:
    """Every kernel at the widths of every model, bf16."""
    shapes: dict[str, list[tuple[int, ...]]] = {
        "norm": [(num_tokens, width) for width in HIDDEN_WIDTHS],
        "norm and residual": [(num_tokens, width) for width in HIDDEN_WIDTHS],
        "swiglu": [(num_tokens, width) for width in FFN_WIDTHS],
        "heads": [(num_tokens // batch_size, batch_size, *heads) for heads in HEADS],
    }
    return [Case(kernel, shape, torch.bfloat16) for kernel in KERNELS for shape in shapes[kernel]]


def builds() -> list[Build]:
    """Every shipped setting of the Triton kernels."""
    from tolktrain_kernels.elementwise_builds import builds

    return builds()


def numerics(device: str) -> Iterator[tuple[str, str, float, float, bool]]:
    """Errors against float64, as `pooling_check.entries` gives them."""
    for case in QUICK_CASES:
        yield from entries(_name(case), case.dtype, deviations(case, device))


def _name(case: Case) -> str:
    return f"{case.kernel}, {' x '.join(map(str, case.shape))}, {str(case.dtype).removeprefix('torch.')}"


def least_bytes(mode: str, case: Case) -> int:
    """Bytes to move: inputs in, outputs out; backward, also the gradients in and out.

    The norm's weight, the numbers of one row and the angles, which all heads share, are not counted.
    """
    if case.kernel == "heads":
        product = torch.Size(case.input_shapes()["product"]).numel() * case.dtype.itemsize
        return {"forward": 2, "backward": 2, "both": 4}[mode] * product
    # Tensors of an output's size.
    forward, backward = {
        "norm": (2, 3),  # states and norm; states, gradient in and out
        "norm and residual": (4, 4),  # states, update, sum and norm; sum, two gradients in, one out for both
        "swiglu": (3, 5),  # gate, up and output; gate, up, gradient in, two out
    }[case.kernel]
    count = {"forward": forward, "backward": backward, "both": forward + backward}[mode]
    return count * torch.Size(case.shape).numel() * case.dtype.itemsize


def measure_provider(plan: Plan, name: str, provider: Provider, case: Case) -> Iterator[Row]:
    """Three rows of one provider."""
    generator = torch.Generator(plan.device).manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=case.dtype, device=plan.device, generator=generator)

    leaves = [random(shape).requires_grad_() for shape in case.input_shapes().values()]
    gradients = [random(shape) for shape in case.output_shapes().values()]
    angles = make_angles(case.shape[0], case.shape[-1], plan.device) if case.kernel == "heads" else []

    return measure_modes(
        plan,
        lambda: provider(leaves, angles),
        leaves,
        gradients,
        kernel=case.kernel,
        provider=name,
        shape=" x ".join(map(str, case.shape)),
        dtype=case.dtype,
        least={mode: least_bytes(mode, case) for mode in MODES},
    )


def providers(kernel: str, device: str) -> dict[str, Provider]:
    """Eager first; on a GPU also compiled, ours, and Liger's where it is installed and has one."""
    eager: Provider = partial(compute, kernel, backend="torch")
    if device != "cuda":
        return {"eager": eager}
    found: dict[str, Provider] = {
        "eager": eager,
        "compiled": compiled(eager),
        "triton": triton_provider(kernel),
    }
    if kernel != "heads" and importlib.util.find_spec("liger_kernel") is not None:
        found["liger"] = partial(_liger, kernel)
    return found


def triton_provider(kernel: str) -> Provider:
    """Ours."""
    return partial(compute, kernel, backend="triton")


def _liger(kernel: str, inputs: Sequence[Tensor], angles: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Liger's kernels under the same contract: gradients in tensors of their own, gate and up in one."""
    # Not ours to depend on: it need not be installed for the types to be checked.
    ops = importlib.import_module("liger_kernel.ops")
    if kernel == "norm":
        return (ops.LigerRMSNormFunction.apply(*inputs, EPS, 0.0, "llama", False),)
    if kernel == "norm and residual":
        normed, total = ops.LigerFusedAddRMSNormFunction.apply(*inputs, EPS, 0.0, "llama", False)
        return total, normed
    return (ops.LigerFusedGateUpSiLUMulFunction.apply(*inputs),)
