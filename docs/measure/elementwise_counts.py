"""Counts launches and bytes of the elementwise kernels: ours, Liger's, and plain PyTorch's.

Usage, from the root of the repository, with liger-kernel installed (`pip install --no-deps liger-kernel`):
    python tools/nullgpu/run.py -- python docs/measure/elementwise_counts.py
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tolktrain.benchmark.count.counter import BACKWARD, StepCounter
from tolktrain_kernels.bench import elementwise
from tolktrain_kernels.bench.elementwise_check import make_angles

NUM_TOKENS, BATCH_SIZE = 16384, 8
Counts = tuple[float, float]  # launches, bytes


def count(forward: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor]) -> tuple[Counts, Counts]:
    """Launches and bytes of the forward and of the backward pass, in the second of two calls."""
    for _ in range(2):
        with StepCounter(nn.Module(), 0.0).installed(SimpleNamespace(step=None)) as counter:
            outputs = forward()
            gradients = [torch.empty_like(output) for output in outputs]
            begun = len(counter.operations)
            torch.autograd.grad(list(outputs), list(leaves), gradients)
        operations = counter.operations[:begun], counter.operations[begun:]
    assert all(operation.direction == BACKWARD for operation in operations[1])
    return tuple(  # type: ignore[return-value]
        (sum(o.work.launches for o in part), sum(o.work.bytes for o in part)) for part in operations
    )


def random(shape: Sequence[int]) -> Tensor:
    """A leaf; the null GPU computes nothing."""
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)


def show(kernel: str, shape: str, least: tuple[float, float], found: dict[str, tuple[Counts, Counts]]) -> None:
    """A row for each implementation."""
    for name, directions in found.items():
        cells = [
            f"{launches:.0f} | {moved / 1e6:.0f} | {moved / minimum:.2f}"
            for (launches, moved), minimum in zip(directions, least, strict=True)
        ]
        print(f"| {kernel}, {shape} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    print(f"liger-kernel {importlib.metadata.version('liger-kernel')}, torch {torch.__version__}\n")
    print(
        "| kernel | implementation | forward: launches | MB | of the least | backward: launches | MB | of the least |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    cases = {case.kernel: case for case in reversed(elementwise.cases(NUM_TOKENS, BATCH_SIZE))}
    for kernel, case in reversed(cases.items()):
        providers = elementwise.providers(kernel, "cuda")
        del providers["compiled"]
        angles = make_angles(case.shape[0], case.shape[-1], "cuda") if kernel == "heads" else []
        found = {}
        for name, provider in providers.items():
            leaves = [random(shape) for shape in case.input_shapes().values()]
            found[name] = count(partial(provider, leaves, angles), leaves)
        least = elementwise.least_bytes("forward", case), elementwise.least_bytes("backward", case)
        show(kernel, " x ".join(map(str, case.shape)), least, found)


if __name__ == "__main__":
    main()
