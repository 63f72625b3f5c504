"""Layers under torch.compile: the same losses and gradients, in whole pieces, without compiling at every step."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.smoltolk import SmolTolk
from tolktrain_kernels.documents import pack_documents


def steps(model: SmolTolk, batches: list[SimpleNamespace]) -> list[list[Tensor]]:
    """Loss and gradients of each batch."""
    found = []
    for batch in batches:
        model.zero_grad()
        loss = loss_from_sums(model(ModelInputs.from_batch(batch)), 40, 40, 0.3)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    return found


@pytest.mark.slow
def test_compiled_layers_train_the_same_documents(
    architecture: Callable[..., Architecture], batch: Callable[..., SimpleNamespace]
) -> None:
    """Whose numbers and lengths differ from batch to batch, without compiling again: attention is left out."""
    sizes = architecture(num_layers=1, input_adapter_layers=0, output_adapter_layers=0, layer_pooling="none")
    batches = [batch("mst", seed=seed) for seed in range(3)]
    for made, starts in zip(batches, ([(0, 9), (0,), (0, 3, 20)], [(0,), (0, 2), (0,)], [(0, 1)] * 3), strict=True):
        made.documents = pack_documents(starts, made.speech_pred)
    expected = steps(SmolTolk(sizes, 0), batches)
    torch._dynamo.reset()
    counters.clear()
    model = SmolTolk(sizes, 0)
    model.compile_layers()
    numbers = []
    for made, plain in zip(batches, expected, strict=True):
        for found, wanted in zip(*steps(model, [made]), plain, strict=True):
            assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7
        numbers.append(counters["stats"]["unique_graphs"])
    assert numbers[0] == numbers[2] > 0, numbers


@pytest.mark.slow
def test_compiled_layers_train_the_same(
    architecture: Callable[..., Architecture], batch: Callable[..., SimpleNamespace]
) -> None:
    sizes = architecture(num_layers=2, input_adapter_layers=1, output_adapter_layers=1)
    # Sequences that predict speech in all numbers, none included, and speech of every length.
    batches = [batch(kinds, seed=seed) for seed, kinds in enumerate(("mst", "mmm", "stt", "ttt", "smm", "mtm"))]
    expected = steps(SmolTolk(sizes, 0), batches)
    counters.clear()
    torch._dynamo.reset()
    model = SmolTolk(sizes, 0)
    model.compile_layers()
    for ours, plain in zip(steps(model, batches), expected, strict=True):
        assert len(ours) == len(plain)
        for found, wanted in zip(ours, plain, strict=True):
            assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7
    assert counters["stats"]["calls_captured"] > 0
    assert not counters["graph_break"]
    # Variants of the layers and of the pooling; PyTorch gives up at eight of either.
    assert counters["stats"]["unique_graphs"] <= 9, counters["stats"]
    with torch.no_grad():
        model(ModelInputs.from_batch(batch("mm", length=20)))  # validation, of another shape
    assert not counters["graph_break"]
