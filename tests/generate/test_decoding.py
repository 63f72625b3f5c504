"""Decoding with caches draws the tokens that the model draws without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tolktrain.data.sequences import IntArray
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import CachedDecoder, Decoder, PlainDecoder, make_decoder
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "ffn_hidden_size": 48,
    "text_vocab_size": 40,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_text_embeddings": True,
    "initializer_range": 0.2,
    "num_units": 50,
    "num_codebooks": 1,
    "input_adapter_layers": 1,
    "output_adapter_layers": 1,
    "layer_pooling": "both",
    "residual": True,
}
SETTINGS = Sampling(temperature=1.0, top_k=30, seed=3, top_p=0.95, repetition_penalty=1.2)

MakeDecoder = Callable[[SmolTolk, str, int], Decoder]


def _model(**changes: Any) -> tuple[SmolTolk, Vocabulary]:
    architecture = Architecture(**{**SIZES, **changes})
    vocabulary = Vocabulary(architecture.text_vocab_size, 0, architecture.num_units, architecture.num_codebooks)
    return SmolTolk(architecture, seed=1).eval(), vocabulary


def _units(count: int, vocabulary: Vocabulary, eos: bool = True, seed: int = 0) -> IntArray:
    units = np.random.default_rng(seed).integers(0, vocabulary.num_units, (count, vocabulary.num_codebooks))
    if eos:
        units[-1] = vocabulary.speech_eos
    return units


def _continued(
    make: MakeDecoder, model: SmolTolk, vocabulary: Vocabulary, direction: str, batch: int, window: int = 200
) -> list[list[Any]]:
    """What follows `batch` prompts of unequal lengths."""
    source, target = direction.split(" > ")
    lengths = [5, 12, 1, 9][:batch]
    mixed = Context.of_text([3, 4], vocabulary, switch=True)  # speech that follows text begins a segment inside
    contexts = []
    for seed, length in enumerate(lengths):
        if source == "text":
            ids = np.random.default_rng(seed).integers(1, 40, length)
            contexts.append(Context.of_text(ids, vocabulary, switch=target == "speech"))
        else:
            speech = Context.of_speech(_units(length + 1, vocabulary, seed=seed), vocabulary, switch=True)
            both = [mixed, speech] if seed % 2 else [speech]
            contexts.append(
                Context(
                    np.concatenate([part.tokens for part in both], axis=1),
                    np.concatenate([part.is_speech for part in both]),
                )
            )
    if target == "text":
        limits = TextLimits(20, 40, stops=lambda ids: sum(ids) > 200)  # rows end at different steps
        texts = sample_text(make(model, "text", window), contexts, vocabulary, SETTINGS, limits)
        return [list(text) for text in texts]
    prompts = [_units(length, vocabulary, eos=False, seed=9) for length in lengths]
    before = None
    if source == "text":
        prompts, before = [prompt[:0] for prompt in prompts], contexts
    until = SpeechLimits(lambda units: float(units[:, 0].sum()), 350.0, 20)
    spoken = sample_speech(make(model, "speech", window), prompts, vocabulary, SETTINGS, until, before)
    return [units.tolist() for units in spoken]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("direction", ["speech > speech", "speech > text", "text > speech", "text > text"])
def test_caches_change_no_token(direction: str, num_codebooks: int, batch: int) -> None:
    model, vocabulary = _model(num_codebooks=num_codebooks)
    plain = _continued(PlainDecoder.of, model, vocabulary, direction, batch)
    assert _continued(CachedDecoder, model, vocabulary, direction, batch) == plain
    assert len({len(row) for row in plain}) > 1 or batch == 1, "rows that end together prove less"
    assert all(len(row) > 5 for row in plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_adapter_layers": 0, "output_adapter_layers": 0, "layer_pooling": "none", "residual": False},
        {"layer_pooling": "static", "tie_text_embeddings": False},
        {"layer_pooling": "dynamic", "input_adapter_layers": 0},
        {"residual": False, "output_adapter_layers": 0},
    ],
)
def test_caches_with_parts_switched_off(changes: dict[str, Any]) -> None:
    model, vocabulary = _model(**changes)
    for direction in ("speech > speech", "speech > text"):
        cached = _continued(CachedDecoder, model, vocabulary, direction, 3)
        assert cached == _continued(PlainDecoder.of, model, vocabulary, direction, 3)


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_contexts_that_exceed_the_window(num_codebooks: int) -> None:
    """The window is cut in the same way with and without caches, for each row at its own time."""
    model, vocabulary = _model(num_codebooks=num_codebooks)
    for direction in ("speech > speech", "text > speech", "speech > text"):
        cached = _continued(CachedDecoder, model, vocabulary, direction, 4, window=13)
        assert cached == _continued(PlainDecoder.of, model, vocabulary, direction, 4, window=13)
        assert cached != _continued(CachedDecoder, model, vocabulary, direction, 4)


def test_steps_do_not_read_the_context_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the backbone's first layer: those of the prompt, one per unit, and half a window after each full one."""
    model, vocabulary = _model()
    rows: list[int] = []
    layer = next(layer for layer in model.layers.values() if type(layer).__name__ == "BackboneLayer")
    real = layer.block.layer.forward
    monkeypatch.setattr(
        layer.block.layer, "forward", lambda hidden, *rest: rows.append(len(hidden)) or real(hidden, *rest)
    )
    limits = SpeechLimits(lambda units: 0.0, 1.0, 60)
    sample_speech(CachedDecoder(model, "speech", 40), [_units(10, vocabulary)], vocabulary, SETTINGS, limits)
    assert rows == [10] + [1] * 30 + [20] + [1] * 20 + [20] + [1] * 7


def test_logits_equal_those_without_caches() -> None:
    model, vocabulary = _model()
    contexts = [Context.of_speech(_units(length, vocabulary), vocabulary) for length in (3, 8)]
    decoders = CachedDecoder(model, "speech", 100), PlainDecoder.of(model, "speech", 100)
    both = [decoder.begin(contexts) for decoder in decoders]
    for step in range(5):
        torch.testing.assert_close(both[0], both[1], rtol=0, atol=2e-5)
        both = [decoder.extend(np.array([[step], [step + 1]])) for decoder in decoders]


def test_published_attention_has_no_caches() -> None:
    model, vocabulary = _model(adapter_attention="published")
    assert isinstance(make_decoder(model, "speech", 50), PlainDecoder)
    assert isinstance(make_decoder(_model()[0], "speech", 50), CachedDecoder)
    assert _continued(make_decoder, model, vocabulary, "speech > text", 2)
