"""Cross-entropy of a linear head in chunks: against all logits at once, and what it may never make."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tolktrain_kernels import cross_entropy
from tolktrain_kernels.bench.loss_check import QUICK_CASES, Case, deviations
from tolktrain_kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_plain


@pytest.fixture
def four_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 4 * 11 + 3)  # of `make`'s vocabulary


def make(num_rows: int = 10, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """States [N, 6] and a weight [11, 6], which want gradients, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 6, dtype=torch.float64, generator=generator) for rows in (num_rows, 11))
    targets = torch.randint(0, 7, (num_rows,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def assert_equal_to_plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, num_predicted: int | None = None, ignored: int | None = None
) -> tuple[Tensor, Tensor]:
    """Values, and the gradients of a loss in which the sum has a factor; returns the gradients."""
    given = (hidden, weight, targets, num_predicted, ignored)
    found, expected = linear_cross_entropy(*given), linear_cross_entropy_plain(*given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0].requires_grad and not found[1].requires_grad
    gradients, true = (torch.autograd.grad(-0.37 * total.square(), (hidden, weight)) for total, _ in (found, expected))
    for one, other in zip(gradients, true, strict=True):
        torch.testing.assert_close(one, other)
    return gradients


@pytest.mark.parametrize("num_rows", [1, 3, 4, 8, 10])
@pytest.mark.usefixtures("four_rows_at_a_time")
def test_chunks_equal_all_logits_at_once(num_rows: int) -> None:
    assert_equal_to_plain(*make(num_rows))


@pytest.mark.usefixtures("four_rows_at_a_time")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factors_weight_the_terms_of_the_sum(dtype: torch.dtype) -> None:
    """In both gradients; the terms themselves are without them."""
    hidden, weight, targets = make(dtype=dtype)
    factors = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64).float()
    total, terms = linear_cross_entropy(hidden, weight, targets, None, 3, "torch", factors)
    whole, table = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    nll = -(whole @ table.T).log_softmax(1)[torch.arange(10), targets].where(targets != 3, 0.0)
    expected = (nll * factors).sum()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(total.double(), expected, **tolerance)
    torch.testing.assert_close(terms.double(), nll, **tolerance)
    found, true = torch.autograd.grad(total, (hidden, weight)), torch.autograd.grad(expected, (whole, table))
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one.double(), other, **tolerance)


def test_values_are_those_of_the_formula() -> None:
    weight = torch.tensor([[0.0], [math.log(3.0)]])
    total, terms = linear_cross_entropy(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    torch.testing.assert_close(terms, torch.tensor([math.log(4.0), math.log(4.0 / 3.0)]))
    torch.testing.assert_close(total, terms.sum())


@pytest.mark.usefixtures("four_rows_at_a_time")
def test_rows_that_are_never_predicted_take_no_part() -> None:
    hidden, weight, targets = make()
    _, d_weight = assert_equal_to_plain(hidden, weight, targets, num_predicted=7)
    assert d_weight[:7].any(dim=1).all() and not d_weight[7:].any()


@pytest.mark.usefixtures("four_rows_at_a_time")
@pytest.mark.parametrize("ignored", [0, 11])  # a row of the weight, and one beyond
def test_ignored_targets_count_for_nothing(ignored: int) -> None:
    hidden, weight, targets = make()
    targets[4:9] = ignored  # all of the second chunk
    d_hidden, _ = assert_equal_to_plain(hidden, weight, targets, ignored=ignored)
    assert not d_hidden[targets == ignored].any() and d_hidden[targets != ignored].any(dim=1).all()
    assert not linear_cross_entropy(hidden, weight, targets, ignored=ignored)[1][targets == ignored].any()


def test_without_rows_all_is_zero() -> None:
    hidden, weight, targets = make(num_rows=0)
    d_hidden, d_weight = assert_equal_to_plain(hidden, weight, targets, num_predicted=7)
    assert d_hidden.shape == (0, 6) and not d_weight.any()


@pytest.mark.usefixtures("four_rows_at_a_time")
def test_strided_states_and_targets() -> None:
    hidden, weight, targets = make()
    turned = torch.empty(6, 10, dtype=torch.float64).t().copy_(hidden.detach()).requires_grad_()
    column = torch.stack((targets, targets), dim=1)[:, 1]
    assert not turned.is_contiguous() and not column.is_contiguous()
    for one, other in zip(
        assert_equal_to_plain(turned, weight, column), assert_equal_to_plain(hidden, weight, targets), strict=True
    ):
        torch.testing.assert_close(one, other)


class Recorder(TorchDispatchMode):
    """Shapes of everything that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.shapes.append((func.overloadpacket._qualified_op_name, tuple(tensor.shape)))
        return made

    def products(self, shape: tuple[int, ...]) -> int:
        """Matrix products with a result of this shape."""
        return sum(found == shape for name, found in self.shapes if name in ("aten::mm", "aten::addmm", "aten::addmm_"))


@contextmanager
def recorded() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", [linear_cross_entropy, linear_cross_entropy_plain])
def test_the_logits_never_exist_together(monkeypatch: pytest.MonkeyPatch, form: Any, dtype: torch.dtype) -> None:
    num_rows, vocabulary, width, at_a_time = 60, 50, 4, 7
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", at_a_time * vocabulary)
    hidden = torch.randn(num_rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    with recorded() as recorder:
        form(hidden, weight, torch.zeros(num_rows, dtype=torch.long))[0].backward()
    largest = max(math.prod(shape) for _, shape in recorder.shapes)
    # The plain form shows that the recorder sees them.
    assert largest == (at_a_time if form is linear_cross_entropy else num_rows) * vocabulary


@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("frozen", ["none", "weight", "hidden", "both", "no_grad"])
def test_only_the_gradients_that_are_wanted_are_made(
    monkeypatch: pytest.MonkeyPatch, frozen: str, num_chunks: int
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 11 * (4 if num_chunks == 3 else 10))
    hidden, weight, targets = make()
    expected = linear_cross_entropy_plain(hidden, weight, targets)
    true = dict(zip(("hidden", "weight"), torch.autograd.grad(expected[0], (hidden, weight)), strict=True))
    hidden.requires_grad_(frozen not in ("hidden", "both"))
    weight.requires_grad_(frozen not in ("weight", "both"))
    with recorded() as recorder, torch.set_grad_enabled(frozen != "no_grad"):
        total, terms = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(terms, expected[1])
    wants = {
        "hidden": hidden.requires_grad and frozen != "no_grad",
        "weight": weight.requires_grad and frozen != "no_grad",
    }
    assert total.requires_grad == any(wants.values())
    assert recorder.products((11, 6)) == num_chunks * wants["weight"]
    shapes = [(4, 6), (4, 6), (2, 6)] if num_chunks == 3 else [(10, 6)]
    assert sum(recorder.products(shape) for shape in set(shapes)) == num_chunks * wants["hidden"]
    for name, leaf in (("hidden", hidden), ("weight", weight)):
        if wants[name]:
            torch.testing.assert_close(torch.autograd.grad(total, leaf, retain_graph=True)[0], true[name])


@pytest.mark.usefixtures("four_rows_at_a_time")
def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, targets = make()
    total, _ = linear_cross_entropy(hidden, weight, targets)
    first, second = (torch.autograd.grad(3 * total, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, targets = make()
    (d_hidden,) = torch.autograd.grad(
        linear_cross_entropy(hidden, weight, targets)[0].square(), hidden, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_hidden.sum().backward()


@pytest.mark.parametrize("case", QUICK_CASES, ids=str)
@pytest.mark.parametrize("at_a_time", [5, 1000])  # of fewer rows a product adds up less exactly
def test_equals_float64(monkeypatch: pytest.MonkeyPatch, case: Case, at_a_time: int) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", at_a_time * case.vocabulary)
    found = deviations(case, "cpu", "torch")
    assert [deviation.tensor for deviation in found] == ["sum", "terms", "gradient of hidden", "gradient of weight"]
    assert not [deviation for deviation in found if not deviation.is_within(case.dtype)]


def test_types() -> None:
    hidden, weight, targets = make()
    low = hidden.detach().bfloat16().requires_grad_()
    total, terms = linear_cross_entropy(low, weight, targets)
    assert total.dtype == terms.dtype == torch.float32
    d_hidden, d_weight = torch.autograd.grad(total, (low, weight))
    assert d_hidden.dtype == torch.bfloat16 and d_weight.dtype == torch.float64


def test_a_factor_of_the_sum_is_not_rounded_to_the_states_type() -> None:
    hidden, weight, targets = make(dtype=torch.bfloat16)
    factor = 1 + 2.0**-8  # in bf16 it is 1
    (plain,), (scaled,) = (
        torch.autograd.grad(number * linear_cross_entropy(hidden, weight, targets)[0], hidden)
        for number in (1.0, factor)
    )
    assert torch.equal(scaled, (plain.double() * factor).bfloat16())
    assert not torch.equal(scaled, plain)


def test_chunks_are_whole_tiles_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for logits, rows in ((1000, 100), (1290, 128), (2600, 256), (3, 1)):
        monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", logits)
        assert cross_entropy._rows_at_a_time("cpu", 10) == rows
