"""Decoding with caches draws the tokens that the model draws without."""

from typing import Any

import numpy as np
import pytest
import torch
from small_continuations import DIRECTIONS, SETTINGS, continued, random_units, small_model

from tolktrain.generate.context import Context
from tolktrain.generate.decoding import CachedDecoder, PlainDecoder
from tolktrain.generate.sampling import SpeechLimits, sample_speech
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.model.architecture import Lora


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_caches_change_no_token(direction: str, num_codebooks: int, batch: int) -> None:
    model, vocabulary = small_model(num_codebooks=num_codebooks)
    plain = continued(PlainDecoder.of, model, vocabulary, direction, batch)
    assert continued(CachedDecoder, model, vocabulary, direction, batch) == plain
    assert len({len(row) for row in plain}) > 1 or batch == 1, "rows that end together prove less"
    assert all(len(row) > 5 for row in plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_adapter_layers": 0, "output_adapter_layers": 0, "layer_pooling": "none", "residual": False},
        {"layer_pooling": "static", "tie_text_embeddings": False},
        {"layer_pooling": "dynamic", "input_adapter_layers": 0},
        {"residual": False, "output_adapter_layers": 0},
        {"lora": Lora(2, 8.0, ("self_attn.q_proj", "self_attn.v_proj"), ("input_adapter", "backbone"))},
    ],
)
def test_caches_with_parts_switched_off(changes: dict[str, Any]) -> None:
    model, vocabulary = small_model(**changes)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.b"):  # zero at the start
            torch.nn.init.normal_(parameter, std=0.2)
    for direction in ("speech > speech", "speech > text"):
        cached = continued(CachedDecoder, model, vocabulary, direction, 3)
        assert cached == continued(PlainDecoder.of, model, vocabulary, direction, 3)


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_contexts_that_exceed_the_window(num_codebooks: int) -> None:
    """The window is cut in the same way with and without caches, for each row at its own time."""
    model, vocabulary = small_model(num_codebooks=num_codebooks)
    for direction in ("speech > speech", "text > speech", "speech > text"):
        cached = continued(CachedDecoder, model, vocabulary, direction, 4, window=13)
        assert cached == continued(PlainDecoder.of, model, vocabulary, direction, 4, window=13)
        assert cached != continued(CachedDecoder, model, vocabulary, direction, 4)


def test_steps_do_not_read_the_context_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the backbone's first layer: those of the prompt, one per unit, and half a window after each full one."""
    model, vocabulary = small_model()
    rows: list[int] = []
    layer = next(layer for layer in model.layers.values() if type(layer).__name__ == "BackboneLayer")
    real = layer.block.layer.forward
    monkeypatch.setattr(
        layer.block.layer, "forward", lambda hidden, *rest: rows.append(len(hidden)) or real(hidden, *rest)
    )
    limits = SpeechLimits(lambda units: 0.0, 1.0, 60)
    sample_speech(CachedDecoder(model, "speech", 40), [random_units(10, vocabulary)], vocabulary, SETTINGS, limits)
    assert rows == [10] + [1] * 30 + [20] + [1] * 20 + [20] + [1] * 7


def test_logits_equal_those_without_caches() -> None:
    model, vocabulary = small_model()
    contexts = [Context.of_speech(random_units(length, vocabulary), vocabulary) for length in (3, 8)]
    decoders = CachedDecoder(model, "speech", 100), PlainDecoder.of(model, "speech", 100)
    both = [decoder.begin(contexts) for decoder in decoders]
    for step in range(5):
        torch.testing.assert_close(both[0], both[1], rtol=0, atol=2e-5)
        both = [decoder.extend(np.array([[step], [step + 1]])) for decoder in decoders]


def test_published_attention_has_no_caches() -> None:
    model, vocabulary = small_model(adapter_attention="published")
    assert isinstance(make_decoder(model, "speech", 50), PlainDecoder)
    assert isinstance(make_decoder(small_model()[0], "speech", 50), CachedDecoder)
    assert continued(make_decoder, model, vocabulary, "speech > text", 2)
