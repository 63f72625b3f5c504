"""A context of text and speech that grows, is cut and changes gives the logits of the whole context."""

from typing import Any

import numpy as np
import pytest
import torch
from small_continuations import random_units, small_model

from tolktrain.data.strategies.conversation import Segment
from tolktrain.generate.context import Context
from tolktrain.generate.mixed_decoding import CachedMixedDecoder, PlainMixedDecoder
from tolktrain.generate.tensor_ranks import make_mixed_decoder
from tolktrain.vocabulary import Vocabulary


def _segments(vocabulary: Vocabulary) -> list[Segment]:
    rng = np.random.default_rng(4)
    found = []
    for number, length in enumerate((3, 7, 2, 5, 6, 4)):
        found.append(Segment("special", np.array([vocabulary.switch])))
        if number % 2:
            found.append(Segment("speech", random_units(length, vocabulary, seed=number)))
        else:
            found.append(Segment("text", rng.integers(1, 40, length)))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_codebooks": 3},
        {"input_adapter_layers": 2, "layer_pooling": "dynamic", "tie_text_embeddings": False},
        {"input_adapter_layers": 0, "output_adapter_layers": 0, "layer_pooling": "none", "residual": False},
    ],
)
def test_logits_of_contexts_that_grow_and_change(changes: dict[str, Any]) -> None:
    """Turn by turn, position by position inside speech, back into an earlier speech segment, and another beginning."""
    model, vocabulary = small_model(**changes)
    segments = _segments(vocabulary)
    whole = Context.of_segments(segments, vocabulary)
    speech = np.flatnonzero(whole.is_speech)
    inside = int(speech[len(speech) // 2])
    contexts = [Context.of_segments(segments[:count], vocabulary) for count in (1, 4, 5, 8)]
    contexts += [Context(whole.tokens[:, :end], whole.is_speech[:end]) for end in (*range(inside, inside + 4), inside)]
    first = int(speech[1]) + 1  # inside the first speech segment, whose keys the adapter no longer has
    contexts += [whole, Context(whole.tokens[:, :first], whole.is_speech[:first]), whole, whole]
    contexts += [Context.of_segments([*segments[:2], *segments[6:]], vocabulary)]  # an exchange is left out
    cached, plain = CachedMixedDecoder(model, 300), PlainMixedDecoder(model)
    for number, context in enumerate(contexts):
        for modality in ("text", "speech") if number % 2 else ("speech", "text"):
            found, wanted = cached.read(context, modality), plain.read(context, modality)  # type: ignore[arg-type]
            torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)


def test_only_what_is_new_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, vocabulary = small_model()
    segments = _segments(vocabulary)
    rows: list[int] = []
    layer = next(layer for layer in model.layers.values() if type(layer).__name__ == "BackboneLayer")
    real = layer.block.layer.forward
    monkeypatch.setattr(
        layer.block.layer, "forward", lambda hidden, *rest: rows.append(len(hidden)) or real(hidden, *rest)
    )
    decoder = CachedMixedDecoder(model, 300)
    for count in (2, 4, 12):
        rows.clear()
        before = Context.of_segments(segments[: {2: 0, 4: 2, 12: 4}[count]], vocabulary)
        context = Context.of_segments(segments[:count], vocabulary)
        decoder.read(context, "text")
        assert sum(rows) == len(context) - len(before)
    rows.clear()
    decoder.read(Context.of_segments([*segments[:2], *segments[10:]], vocabulary), "speech")
    assert sum(rows) == len(Context.of_segments(segments[10:], vocabulary)) - 1, "a switch is in common"


def test_published_attention_has_no_caches() -> None:
    model, _ = small_model(adapter_attention="published")
    assert isinstance(make_mixed_decoder(model, 50), PlainMixedDecoder)
    assert isinstance(make_mixed_decoder(small_model()[0], 50), CachedMixedDecoder)
