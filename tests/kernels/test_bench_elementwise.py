"""The microbenchmark of the elementwise kernels: what it counts and what it measures."""

from pathlib import Path

import pytest
import torch

from tolktrain_kernels.bench import elementwise
from tolktrain_kernels.bench.elementwise_check import KERNELS, Case
from tolktrain_kernels.bench.measure import Plan
from tolktrain_kernels.bench.report import write_report

QUICK = Plan("cpu", quick=True, copy_rate=1e9)


@pytest.mark.parametrize(
    ("kernel", "forward", "backward"),
    [("norm", 2, 3), ("norm and residual", 4, 4), ("swiglu", 3, 5)],
)
def test_least_bytes_are_those_of_inputs_and_outputs(kernel: str, forward: int, backward: int) -> None:
    case = Case(kernel, (4, 1, 2, 8), torch.bfloat16)
    assert elementwise.least_bytes("forward", case) == forward * 64 * 2
    assert elementwise.least_bytes("backward", case) == backward * 64 * 2
    assert elementwise.least_bytes("both", case) == (forward + backward) * 64 * 2


def test_heads_are_read_and_written_once() -> None:
    """The product of 4 x 1 x 2 groups of 3 queries, a key and a value of width 8, and as much of outputs."""
    case = Case("heads", (4, 1, 2, 3, 8), torch.bfloat16)
    outputs = sum(torch.Size(shape).numel() for shape in case.output_shapes().values())
    assert outputs == 4 * 1 * 2 * (3 + 2) * 8
    assert [elementwise.least_bytes(mode, case) for mode in ("forward", "backward", "both")] == [
        2 * 2 * outputs,
        2 * 2 * outputs,
        4 * 2 * outputs,
    ]


def test_the_plain_form_of_every_kernel_is_measured_in_every_mode(tmp_path: Path) -> None:
    cases = {case.kernel: case for case in elementwise.cases(num_tokens=8, batch_size=2)}
    assert tuple(cases) == KERNELS
    rows = []
    for kernel, case in cases.items():
        (provider,) = elementwise.providers(kernel, "cpu").values()
        found = list(elementwise.measure_provider(QUICK, "eager", provider, case))
        assert [row.mode for row in found] == ["forward", "backward", "both"]
        assert {row.kernel for row in found} == {kernel}
        rows += found
    # A link in Markdown ends at a space.
    names = [path.name for path in write_report(tmp_path, {}, rows, [], [])]
    assert "norm-and-residual-both.png" in names and not [name for name in names if " " in name]


def test_nothing_is_timed_without_a_gpu() -> None:
    assert list(elementwise.rows(QUICK)) == []
