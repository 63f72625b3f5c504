"""Continuations of prompts of unequal lengths by a small model."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tolktrain.data.sequences import IntArray
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import Decoder
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.vocabulary import Vocabulary

DIRECTIONS = ("speech > speech", "speech > text", "text > speech", "text > text")
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


def small_model(layout: Layout | None = None, **changes: Any) -> tuple[SmolTolk, Vocabulary]:
    """Random weights, the same in every layout."""
    architecture = Architecture(**{**SIZES, **changes})
    vocabulary = Vocabulary(architecture.text_vocab_size, 0, architecture.num_units, architecture.num_codebooks)
    return SmolTolk(architecture, 1, layout).eval(), vocabulary


def random_units(count: int, vocabulary: Vocabulary, eos: bool = True, seed: int = 0) -> IntArray:
    """Units [count, K], which end with EOS."""
    units = np.random.default_rng(seed).integers(0, vocabulary.num_units, (count, vocabulary.num_codebooks))
    if eos:
        units[-1] = vocabulary.speech_eos
    return units


def continued(
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
            speech = Context.of_speech(random_units(length + 1, vocabulary, seed=seed), vocabulary, switch=True)
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
    prompts = [random_units(length, vocabulary, eos=False, seed=9) for length in lengths]
    before = None
    if source == "text":
        prompts, before = [prompt[:0] for prompt in prompts], contexts
    until = SpeechLimits(lambda units: float(units[:, 0].sum()), 350.0, 20)
    spoken = sample_speech(make(model, "speech", window), prompts, vocabulary, SETTINGS, until, before)
    return [units.tolist() for units in spoken]
