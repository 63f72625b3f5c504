"""The whole model against a plain PyTorch twin, and the laws that training relies on."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from twin import Twin, gradients_of, make_model

from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums, loss_from_sums
from tolktrain.model.parameter_layout import canonical_state, parameter_views
from tolktrain.model.smoltolk import SmolTolk

MakeArchitecture = Callable[..., Architecture]
MakeBatch = Callable[..., SimpleNamespace]
MakeInputs = Callable[..., ModelInputs]


CASES = {
    "everything": ({}, "smt"),
    "two_codebooks": ({"num_codebooks": 2}, "mms"),
    "untied": ({"tie_text_embeddings": False}, "mt"),
    "dynamic_only": ({"layer_pooling": "dynamic", "input_adapter_layers": 1}, "tmm"),
    "static_only": ({"layer_pooling": "static", "residual": False}, "mm"),
    "early_fusion": (
        {"layer_pooling": "none", "residual": False, "input_adapter_layers": 0, "output_adapter_layers": 0},
        "smt",
    ),
    "one_layer_one_group": ({"num_layers": 1, "num_key_value_heads": 1, "output_adapter_layers": 1}, "ms"),
    "text_only": ({}, "ttt"),
    "speech_only": ({}, "ss"),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_twin_with_every_gradient(case: str, architecture: MakeArchitecture, batch: MakeBatch) -> None:
    changes, kinds = CASES[case]
    sizes = architecture(**changes)
    model = make_model(sizes).double()
    state = {name: tensor.clone().requires_grad_() for name, tensor in canonical_state(model).items()}
    data = batch(kinds, codebooks=sizes.num_codebooks, seed=3)
    if sizes.num_codebooks > 1:
        data.targets[:, 1, :3] = sizes.speech_pad
    found, expected = model(ModelInputs.from_batch(data)), Twin(sizes, state).sums(data)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-9)
    loss_from_sums(found, 30, 20, 0.5).backward()
    loss_from_sums(expected, 30, 20, 0.5).backward()
    for name, gradient in gradients_of(model).items():
        other = state[name].grad if state[name].grad is not None else torch.zeros_like(gradient)
        # The angles are float32 in the model and float64 in the twin.
        assert (gradient - other).norm() <= 2e-6 * other.norm(), name


@pytest.mark.parametrize("adapters", itertools.product((0, 1), (0, 1)))
@pytest.mark.parametrize("pooling", ["none", "static", "dynamic", "both"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_switch_trains(
    adapters: tuple[int, int], pooling: str, residual: bool, architecture: MakeArchitecture, inputs: MakeInputs
) -> None:
    sizes = architecture(
        input_adapter_layers=adapters[0], output_adapter_layers=adapters[1], layer_pooling=pooling, residual=residual
    )
    model = SmolTolk(sizes, 0)
    sums = model(inputs("mmt"))
    loss_from_sums(sums, 10, 10, 0.01).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []
    assert (sums.entropy > 0) == (pooling in ("dynamic", "both"))


def test_loss_does_not_depend_on_the_split(
    architecture: MakeArchitecture, batch: MakeBatch, rows: Callable[[SimpleNamespace, slice], SimpleNamespace]
) -> None:
    model, data = make_model(architecture()).double(), batch("smtmst", seed=5)
    scored = int((data.speech_pred | data.text_pred).sum())
    positions = int(data.speech_pred.any(1).sum()) * data.speech_in.shape[1]
    results = []
    for size in (6, 3, 1):
        model.zero_grad()
        total = 0.0
        for start in range(0, 6, size):
            sums = model(ModelInputs.from_batch(rows(data, slice(start, start + size))))
            loss = loss_from_sums(sums, scored, positions, 0.01)
            loss.backward()
            total += loss.item()
        results.append((total, gradients_of(model)))
    for total, gradients in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-6)  # sums are accumulated in float32
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], rtol=1e-6, atol=1e-9)


def test_two_runs_are_bit_identical(architecture: MakeArchitecture, inputs: MakeInputs) -> None:
    results = []
    for _ in range(2):
        model = SmolTolk(architecture(), 7)
        sums = model(inputs("smmt", length=64))
        loss_from_sums(sums, 100, 100, 0.01).backward()
        results.append((sums, gradients_of(model)))
    assert all(torch.equal(*pair) for pair in zip(*(sums for sums, _ in results), strict=True))
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())


def test_bfloat16_is_close_to_float32(architecture: MakeArchitecture, inputs: MakeInputs) -> None:
    model, data = SmolTolk(architecture(initializer_range=0.05), 0), inputs("smt")
    exact = model(data)
    model.bfloat16()
    found = model(data)
    assert all(value.dtype == torch.float32 for value in found)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0)
    loss_from_sums(found, 10, 10, 0.01).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_nothing_scored_can_still_go_backward(architecture: MakeArchitecture, batch: MakeBatch) -> None:
    data = batch("m")
    data.speech_pred[:], data.text_pred[:] = False, False
    model = SmolTolk(architecture(), 0)
    sums = model(ModelInputs.from_batch(data))
    loss_from_sums(sums, 0, 0, 0.01).backward()
    assert sums.text_nll == sums.speech_nll == sums.entropy == 0


@pytest.mark.parametrize("changes", [{}, {"layer_pooling": "none", "input_adapter_layers": 0}])
def test_text_only_gives_speech_parts_a_gradient_of_zero(
    architecture: MakeArchitecture, inputs: MakeInputs, changes: dict[str, Any]
) -> None:
    """Zero and not none: ranks whose micro batches hold speech wait for it."""
    model = SmolTolk(architecture(**changes), 0)
    sums = model(inputs("tt"))
    loss_from_sums(sums, 10, 48, 0.01).backward()  # other micro batches have speech
    views = parameter_views(model)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert {views[name].group for name, gradient in gradients.items() if gradient.any()} == {"backbone"}


@pytest.mark.parametrize("pooling", ["both", "none"])
def test_gradients_arrive_in_one_order_whatever_the_batch_holds(
    architecture: MakeArchitecture, inputs: MakeInputs, pooling: str
) -> None:
    """ZeRO reduces gradients as they arrive: ranks that read text and ranks that read speech would mix them up."""
    orders = []
    for kinds in ("tt", "ss", "sm", "tm"):
        model, arrived = SmolTolk(architecture(layer_pooling=pooling), 0), []
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name, arrived=arrived: arrived.append(name))
        loss_from_sums(model(inputs(kinds)), 10, 48, 0.01).backward()
        orders.append(arrived)
    assert all(order == orders[0] for order in orders)
    assert len(orders[0]) == len(list(model.parameters()))


@pytest.mark.parametrize("kinds", ["smtm", "tt", "s"])
def test_token_nll_adds_up_to_the_sums(kinds: str, architecture: MakeArchitecture, batch: MakeBatch) -> None:
    data = batch(kinds)
    model, inputs = make_model(architecture()), ModelInputs.from_batch(data)
    nll, sums = model.token_nll(inputs), model(inputs)
    assert nll.shape == data.speech_in.shape
    torch.testing.assert_close(nll[data.text_pred].sum(), sums.text_nll.detach())
    torch.testing.assert_close(nll[data.speech_pred].sum(), sums.speech_nll.detach())
    assert not nll[~(data.text_pred | data.speech_pred)].any()


def test_next_logits_score_the_target(architecture: MakeArchitecture, batch: MakeBatch) -> None:
    data = batch("smtm", codebooks=2)
    data.speech_pred[:], data.text_pred[:] = False, False
    data.speech_pred[:, -1], data.text_pred[:, -1] = True, False
    data.targets[:, :, -1] = torch.randint(50, (4, 2))
    model = make_model(architecture(num_codebooks=2))
    logits = model.next_logits(ModelInputs.for_next(data.tokens, data.speech_in))
    assert logits.text.shape == (4, 40)
    assert logits.speech.shape == (4, 2, 52)
    log_probs = logits.speech.log_softmax(-1).gather(-1, data.targets[:, :, -1:]).sum((1, 2))
    torch.testing.assert_close(-log_probs, model.token_nll(ModelInputs.from_batch(data))[:, -1])


def test_next_logits_of_padded_sequences(architecture: MakeArchitecture, batch: MakeBatch) -> None:
    data, lengths = batch("msm"), torch.tensor([24, 9, 17])
    model = make_model(architecture())
    together = model.next_logits(ModelInputs.for_next(data.tokens, data.speech_in, lengths))
    for row, length in enumerate(lengths.tolist()):
        part = slice(row, row + 1)
        alone = model.next_logits(ModelInputs.for_next(data.tokens[part, :, :length], data.speech_in[part, :length]))
        torch.testing.assert_close(together.text[row], alone.text[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.speech[row], alone.speech[0], rtol=1e-4, atol=1e-4)


def test_layer_probs(architecture: MakeArchitecture, batch: MakeBatch) -> None:
    data = batch("tsm")
    model = make_model(architecture())
    some = model.layer_probs(ModelInputs.from_batch(data))
    every = model.layer_probs(ModelInputs.from_batch(data, every_sequence=True))
    assert some.shape == (3, 24, 3)
    assert not some[0].any()
    torch.testing.assert_close(some[1:], every[1:])
    torch.testing.assert_close(every.sum(-1), torch.ones(3, 24))
    assert SmolTolk(architecture(layer_pooling="static"), 0).layer_probs(ModelInputs.from_batch(data)) is None


def test_a_run_sees_no_other_run_before_the_backbone(architecture: MakeArchitecture, batch: MakeBatch) -> None:
    model, data = make_model(architecture()), batch("m", length=40, seed=2)
    assert data.segments.num_segments > 2
    boundary = int(data.segments.cu_seqlens[1])

    def adapted() -> Tensor:
        embedding, *layers = model.trunk
        carrier = embedding(ModelInputs.from_batch(data))
        for layer in layers[:2]:
            carrier = layer(carrier)
        return carrier.hidden.detach()

    before = adapted()
    data.tokens[0, 0, data.segments.positions[:boundary]] = 0  # another first run
    text = torch.nonzero(~data.speech_in[0]).flatten()
    data.tokens[0, 0, text] = 1  # and other text
    after = adapted()
    changed = (before - after).abs().amax((1, 2)) > 0
    assert not changed[data.segments.positions[boundary:]].any()
    assert changed[data.segments.positions[:boundary]].any()


def test_loss_from_sums_of_the_design() -> None:
    sums = LossSums(torch.tensor(6.0), torch.tensor(2.0), torch.tensor(10.0))
    assert loss_from_sums(sums, 4, 5, 0.01).item() == pytest.approx(2.0 - 0.01 * 2.0)
    assert loss_from_sums(sums, 4, 0, 0.01).item() == 2.0
