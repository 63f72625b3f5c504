"""The cross-entropy kernel in Triton, computed: by the interpreter on the CPU, or on a GPU.

Run by test_in_triton.py, in a process of its own: the interpreter must be chosen before the kernel is
imported. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_cross_entropy.py
"""

import os

import pytest
import torch
from torch import Tensor

from tolktrain_kernels import cross_entropy, cross_entropy_triton
from tolktrain_kernels.bench.elementwise_check import relative_error
from tolktrain_kernels.bench.loss_check import QUICK_CASES, Case, deviations
from tolktrain_kernels.bench.pooling_check import TOLERANCES
from tolktrain_kernels.cross_entropy import linear_cross_entropy
from tolktrain_kernels.cross_entropy_triton import write_terms

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(7, 5), (199, 502), (5, 4097), (3, 4096), (2, 49152), (3, 8192), (1, 1), (0, 502)]  # rows, vocabulary
by_type = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def compute(logits: Tensor, targets: Tensor, ignored: int | None = None, derives: bool = True) -> tuple[Tensor, Tensor]:
    """Terms, and the gradient by the logits or the logits themselves."""
    changed = logits.to(DEVICE, copy=True)
    nll = torch.full((len(logits),), torch.inf, device=DEVICE)
    write_terms(changed, targets.to(DEVICE), ignored, nll, derives)
    return nll.cpu(), changed.cpu()


def exact(logits: Tensor, targets: Tensor, ignored: int | None = None) -> tuple[Tensor, Tensor]:
    """The same in float64."""
    leaf = logits.double().requires_grad_()
    ignore_index = -100 if ignored is None else ignored
    nll = torch.nn.functional.cross_entropy(leaf, targets, reduction="none", ignore_index=ignore_index)
    return nll.detach(), torch.autograd.grad(nll.sum(), leaf)[0]


def make(num_rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    logits = (3 * torch.randn(num_rows, vocabulary, generator=generator)).to(dtype)
    targets = torch.randint(0, vocabulary, (num_rows,), generator=generator)
    targets[:1], targets[1:2] = 0, vocabulary - 1
    return logits, targets


def assert_exact(logits: Tensor, targets: Tensor, ignored: int | None = None) -> None:
    (nll, gradient), (true_nll, true_gradient) = compute(logits, targets, ignored), exact(logits, targets, ignored)
    # Of the logits as they are: their type costs nothing.
    torch.testing.assert_close(nll.double(), true_nll, rtol=1e-6, atol=1e-6)
    assert relative_error(gradient, true_gradient) < TOLERANCES[logits.dtype]


@by_type
@pytest.mark.parametrize(("num_rows", "vocabulary"), SHAPES)
def test_equals_float64(num_rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits, targets = make(num_rows, vocabulary, dtype)
    assert_exact(logits, targets)


@by_type
@pytest.mark.parametrize("ignored", [-1, 3, 501, 502])
def test_ignored_targets(dtype: torch.dtype, ignored: int) -> None:
    logits, targets = make(9, 502, dtype)
    targets[[0, 4, 8]] = ignored
    assert_exact(logits, targets, ignored)
    nll, gradient = compute(logits, targets, ignored)
    assert not nll[targets == ignored].any() and not gradient[targets == ignored].any()


@by_type
@pytest.mark.parametrize("vocabulary", [5, 4097])
def test_extreme_logits(vocabulary: int, dtype: torch.dtype) -> None:
    logits, targets = make(8, vocabulary, dtype)
    logits[0] += 1e4
    logits[1] -= 1e4
    logits[2, targets[2]] = 1e4  # nothing to learn
    logits[3, targets[3]] = -1e4
    logits[4] = 0.0
    logits[5, -1] = 1e4  # met last, and alone in its block
    logits[6, :] = -1e4
    logits[7, 1:] = -torch.inf
    targets[7] = 0
    assert_exact(logits, targets)
    nll, gradient = compute(logits, targets)
    assert nll[2] == 0 and not gradient[2].any()


def test_a_row_that_is_kept_equals_one_that_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ignored, extreme and invalid targets, and where the address of the logits forbids to keep them."""
    logits, targets = make(6, 8192, torch.bfloat16)
    logits[1] += 1e4
    logits[2] = -torch.inf
    logits[2, 8191] = logits[3, targets[3]] = 0.0
    targets[2], targets[4], targets[5] = 8191, 7, 8192
    kept = compute(logits, targets, ignored=7)
    shifted = torch.empty(logits.numel() + 1, dtype=torch.bfloat16, device=DEVICE)[1:].view_as(logits).copy_(logits)
    nll = torch.empty(6, device=DEVICE)
    write_terms(shifted, targets.to(DEVICE), 7, nll, derives=True)
    monkeypatch.setitem(cross_entropy_triton.BLOCKS, 8192, cross_entropy_triton.Setting(4096, 8))
    streamed = compute(logits, targets, ignored=7)
    for found in ((nll.cpu(), shifted.cpu()), streamed):
        for one, other in zip(kept, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert kept[0].isnan().tolist() == [False] * 5 + [True]
    assert not kept[0][4] and not kept[1][4].any()


def test_logits_stay_where_no_gradient_is_wanted() -> None:
    logits, targets = make(5, 502, torch.bfloat16)
    nll, same = compute(logits, targets, derives=False)
    assert torch.equal(same, logits)
    assert torch.equal(nll, compute(logits, targets)[0])


def test_a_target_that_does_not_exist_is_no_number() -> None:
    logits, targets = make(4, 502, torch.float32)
    targets[1], targets[2] = 502, -1
    nll, _ = compute(logits, targets)
    assert nll.isnan().tolist() == [False, True, True, False]
    nll, _ = compute(logits, targets, ignored=-1)
    assert nll.isnan().tolist() == [False, True, False, False]


def test_targets_may_be_a_column() -> None:
    logits, targets = make(9, 502, torch.float32)
    columns = torch.stack((targets.flip(0), targets), dim=1)
    assert torch.equal(compute(logits, columns[:, 1])[0], compute(logits, targets)[0])


@by_type
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    logits, targets = make(5, 4097, dtype)
    for one, other in zip(compute(logits, targets), compute(logits, targets), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "case", [*QUICK_CASES, Case(6, 5, 72, torch.bfloat16), Case(0, 502, 72, torch.float32)], ids=str
)
@pytest.mark.parametrize("at_a_time", [5, 1000])
def test_the_head_equals_float64(monkeypatch: pytest.MonkeyPatch, case: Case, at_a_time: int) -> None:
    for device_type in ("cpu", "cuda"):
        monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, device_type, at_a_time * case.vocabulary)
    found = deviations(case, DEVICE, "triton")
    assert not [deviation for deviation in found if not deviation.is_within(case.dtype)]


def test_a_frozen_weight_and_rows_never_predicted() -> None:
    hidden = torch.randn(5, 16, device=DEVICE, requires_grad=True)
    weight, targets = torch.randn(12, 16, device=DEVICE), torch.arange(5, device=DEVICE)
    found = []
    for backend in ("torch", "triton"):
        total, terms = linear_cross_entropy(hidden, weight, targets, 9, 3, backend)
        found.append((total, terms, torch.autograd.grad(total, hidden)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_float64_is_refused() -> None:
    hidden, weight = torch.zeros(2, 4, device=DEVICE).double(), torch.zeros(3, 4, device=DEVICE).double()
    with pytest.raises(ValueError, match="takes 16 and 32 bit logits, not torch.float64; use backend torch"):
        linear_cross_entropy(hidden, weight, torch.zeros(2, dtype=torch.long, device=DEVICE), backend="triton")
