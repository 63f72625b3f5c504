"""The published form computes the loss and the gradients of our model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tolktrain.benchmark.providers import parameter_group
from tolktrain.benchmark.reference import PublishedInputs, PublishedSmolTolk
from tolktrain.benchmark.synthetic import Speech, random_batches
from tolktrain.config.data import InterleavingConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums, loss_from_sums
from tolktrain.model.parameter_layout import canonical_state, parameter_views
from tolktrain.model.smoltolk import SmolTolk

SMALL = Architecture(
    hidden_size=32,
    num_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    ffn_hidden_size=48,
    text_vocab_size=60,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_text_embeddings=True,
    initializer_range=0.2,
    num_units=50,
    num_codebooks=1,
    input_adapter_layers=2,
    output_adapter_layers=2,
    layer_pooling="both",
    residual=True,
)


def interleaved(codebooks: int) -> Batch:
    """Sequences that begin with text or with speech."""
    spans = InterleavingConfig(text_words=(2, 4), speech_words=(1, 3))
    [batch] = random_batches(1, 6, 48, SMALL.text_vocab_size, Speech(SMALL.num_units, codebooks, 3.0), spans, seed=1)
    assert {bool(row[0]) for row in batch.speech_in} == {True, False}
    return batch


def loss_of(sums: LossSums | Any, batch: Batch) -> Tensor:
    scored = batch.num_text_scored + batch.num_speech_scored
    return loss_from_sums(LossSums(*sums), scored, batch.num_entropy_positions, 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_codebooks": 2, "tie_text_embeddings": False},
        {"head_dim": 16, "num_key_value_heads": 4},
        {"input_adapter_layers": 0, "output_adapter_layers": 0},
    ],
    ids=["as published", "two codebooks, untied", "no grouped queries", "no adapters"],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_all_gradients(changes: dict[str, Any], recompute: bool) -> None:
    sizes = replace(SMALL, **changes)
    ours, theirs, batch = SmolTolk(sizes, 0), PublishedSmolTolk(sizes), interleaved(sizes.num_codebooks)
    with torch.no_grad():
        for name in ("layer_weights", "selector_bias"):  # zero at the beginning, where mistakes hide
            getattr(ours.layers[str(len(ours.layers) - 2 - sizes.output_adapter_layers)].average, name).normal_()
    theirs.load_state_dict(canonical_state(ours))
    if recompute:
        theirs.recompute_layers()
    expected = loss_of(ours(ModelInputs.from_batch(batch)), batch)
    found = loss_of(theirs(PublishedInputs.of(batch, torch.device("cpu"))), batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    views = parameter_views(ours)
    gradients: dict[str, Tensor] = {}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        gradients |= views[name].split(parameter.grad)
    own = dict(theirs.named_parameters())
    assert own.keys() == gradients.keys()
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        found_gradient = own[name].grad
        assert found_gradient is not None
        # Of the pooling's few numbers little is left when the gradients of all positions are summed.
        assert (found_gradient - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * largest, name


def test_groups_are_those_of_our_model() -> None:
    views = parameter_views(SmolTolk(replace(SMALL, tie_text_embeddings=False), None))
    for view in views.values():
        assert {parameter_group(name) for name in view.names} == {view.group}


@pytest.mark.parametrize("changes", [{"layer_pooling": "static"}, {"residual": False}])
def test_what_was_not_published_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="leave it out for this model"):
        PublishedSmolTolk(replace(SMALL, **changes))
