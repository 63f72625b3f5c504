"""FLOPs of a training step against PyTorch's count of a forward and a backward pass."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain_kernels.cross_entropy import linear_cross_entropy_plain
from tolktrain_kernels.layer_pooling import pool_layers_plain

Make = Callable[..., Architecture]
Batches = Callable[..., SimpleNamespace]

LENGTH = 24
SWITCHES = [
    pytest.param({}, id="as published"),
    pytest.param({"num_layers": 5, "head_dim": 16, "input_adapter_layers": 1, "output_adapter_layers": 3}, id="sizes"),
    pytest.param({"num_codebooks": 2, "tie_text_embeddings": False}, id="two codebooks, untied"),
    pytest.param({"layer_pooling": "static", "residual": False}, id="static"),
    pytest.param({"layer_pooling": "dynamic"}, id="dynamic"),
    pytest.param(
        {"layer_pooling": "none", "residual": False, "input_adapter_layers": 0, "output_adapter_layers": 0},
        id="early fusion",
    ),
]
TRAINABLE = [("backbone", "pooling", "speech"), ("pooling", "speech"), ("speech",), ("pooling",), ("backbone",)]


def with_counts(made: SimpleNamespace) -> SimpleNamespace:
    """A batch with what the loader counts."""
    made.num_text_scored, made.num_speech_scored = int(made.text_pred.sum()), int(made.speech_pred.sum())
    made.num_entropy_positions = made.speech_pred.shape[1] * int(made.speech_pred.any(dim=1).sum())
    return made


def counted(architecture: Architecture, trainable: tuple[str, ...], made: SimpleNamespace) -> tuple[int, int]:
    """FLOPs of matrix products in a forward and a backward pass, by PyTorch's counter; attention over full squares."""
    model, inputs = SmolTolk(architecture, 0), ModelInputs.from_batch(made)
    views = parameter_views(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(views[name].group in trainable)
    # As they are written down.
    pooling = mock.patch("tolktrain.model.pooling.pool_layers", lambda *given, **_: pool_layers_plain(*given))
    loss = mock.patch("tolktrain.model.heads.linear_cross_entropy", lambda *a: linear_cross_entropy_plain(*a[:5]))
    with sdpa_kernel(SDPBackend.MATH), pooling, loss, FlopCounterMode(display=False) as counter:
        total = loss_from_sums(model(inputs), 100, 100, 0.01)
        forward = counter.get_total_flops()
        total.backward()
    return forward, counter.get_total_flops() - forward


def with_whole_squares(counts: StepCounts, made: SimpleNamespace) -> StepCounts:
    """The pairs that attention without a fused kernel computes: hidden ones and padding too."""
    return replace(
        counts,
        causal_pairs=counts.positions * LENGTH,
        segment_pairs=made.segments.num_segments * made.segments.max_segment**2,
        predicting_pairs=counts.predicting_positions * LENGTH,
    )


@pytest.mark.parametrize("trainable", TRAINABLE, ids="-".join)
@pytest.mark.parametrize("changes", SWITCHES)
def test_a_step_takes_what_torch_counts(
    architecture: Make, batch: Batches, changes: dict[str, Any], trainable: tuple[Any, ...]
) -> None:
    sizes = architecture(**changes)
    if trainable == ("pooling",) and sizes.layer_pooling == "none":
        trainable = ("backbone", "pooling")  # nothing to train is refused
    made = with_counts(batch("mmstm", LENGTH, codebooks=sizes.num_codebooks))
    found = step_flops(sizes, with_whole_squares(StepCounts.of([made]), made), trainable)
    assert (found.forward, found.backward) == counted(sizes, trainable, made)


def test_every_position_passes_the_published_mask(architecture: Make, batch: Batches) -> None:
    sizes = architecture(adapter_attention="published")
    counts = StepCounts.of([with_counts(batch("mt", LENGTH))])
    adapter = step_flops(sizes, counts, ("speech",)).parts[0]
    assert adapter.forward == 2 * LENGTH * 2 * layer_flops(sizes, LENGTH)[1].flops


def test_counts_are_those_of_a_plain_loop(batch: Batches) -> None:
    made = with_counts(batch("mstm", LENGTH))
    counts = StepCounts.of([made])
    segment_pairs = 0
    for row in made.speech_in.tolist():
        seen = 0
        for is_speech in row:
            seen = seen + 1 if is_speech else 0
            segment_pairs += seen
    assert counts == StepCounts(
        positions=4 * LENGTH,
        causal_pairs=4 * sum(range(1, LENGTH + 1)),
        speech_positions=int(made.speech_in.sum()),
        segment_pairs=segment_pairs,
        predicting_positions=3 * LENGTH,
        predicting_pairs=3 * sum(range(1, LENGTH + 1)),
        text_scored=int(made.text_pred.sum()),
        speech_scored=int(made.speech_pred.sum()),
    )


def test_micro_batches_add_up(architecture: Make, batch: Batches) -> None:
    parts = [with_counts(batch(kinds, LENGTH, seed)) for seed, kinds in enumerate(("mm", "t", "s"))]
    whole = StepCounts.of(parts)
    assert whole == sum((StepCounts.of([part]) for part in parts), StepCounts())
    flops = [step_flops(architecture(), StepCounts.of([part]), ("speech",)).total for part in parts]
    assert step_flops(architecture(), whole, ("speech",)).total == sum(flops)


def test_six_per_weight_and_token_of_a_backbone_that_is_trained_and_four_of_a_frozen_one(architecture: Make) -> None:
    sizes = architecture()
    counts = StepCounts(positions=1000, causal_pairs=0)
    weights = 3 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48)
    assert step_flops(sizes, counts, ("backbone",)).total == 6 * weights * 1000
    assert step_flops(sizes, counts, ("speech",)).total == 4 * weights * 1000
    assert step_flops(sizes, counts, ("pooling",)).total == 2 * weights * 1000
