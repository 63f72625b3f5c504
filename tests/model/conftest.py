"""Small models and batches."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `twin`

from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain_kernels.scored_rows import ScoredRows, index_scored
from tolktrain_kernels.speech_adapter import pack_segments

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 3,
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
    "input_adapter_layers": 2,
    "output_adapter_layers": 2,
    "layer_pooling": "both",
    "residual": True,
}


class MadeBatch(SimpleNamespace):
    """A batch whose masks and targets tests may change; each sequence is a single document."""

    documents = None

    @property
    def scored(self) -> ScoredRows:
        """Of the present masks and targets."""
        return index_scored(self.targets, self.speech_pred, self.text_pred)


def make_batch(kinds: str, length: int = 24, seed: int = 0, codebooks: int = 1) -> SimpleNamespace:
    """Sequences of kind (s)peech, (t)ext or (m)ixed, one letter each; ids of SMALL, a tenth of the targets unscored."""
    rng = np.random.default_rng(seed)
    speech = np.zeros((len(kinds), length + 1), bool)
    for row, kind in enumerate(kinds):
        spans = np.repeat(rng.random(length + 1) < 0.5, rng.integers(2, 7, length + 1))[: length + 1]
        speech[row] = {"s": True, "t": False}[kind] if kind in "st" else spans
    units = rng.integers(0, 51, (len(kinds), codebooks, length + 1))
    words = rng.integers(0, 43, (len(kinds), codebooks, length + 1))
    words[:, 1:] = 0
    tokens = torch.from_numpy(np.where(speech[:, None], units, words))
    scored = torch.from_numpy(rng.random((len(kinds), length)) < 0.9)
    is_speech = torch.from_numpy(speech)
    targets = tokens[..., 1:].contiguous()
    scored &= is_speech[:, 1:] | (targets[:, 0] < 40)  # special ids are never scored
    return MadeBatch(
        tokens=tokens[..., :-1].contiguous(),
        targets=targets,
        speech_in=is_speech[:, :-1],
        speech_pred=is_speech[:, 1:] & scored,
        text_pred=~is_speech[:, 1:] & scored,
        segments=pack_segments(is_speech[:, :-1]),
    )


def select(batch: SimpleNamespace, rows: slice) -> SimpleNamespace:
    """Some sequences of a batch."""
    names = ("tokens", "targets", "speech_in", "speech_pred", "text_pred")
    parts = {name: getattr(batch, name)[rows] for name in names}
    return MadeBatch(**parts, segments=pack_segments(parts["speech_in"]))


@pytest.fixture
def architecture() -> Callable[..., Architecture]:
    """Maker of small architectures: architecture(num_codebooks=2)."""
    return lambda **changes: Architecture(**{**SMALL, **changes})


@pytest.fixture
def batch() -> Callable[..., SimpleNamespace]:
    """Maker of batches: batch("stm")."""
    return make_batch


@pytest.fixture
def inputs() -> Callable[..., ModelInputs]:
    """Maker of model inputs: inputs("stm")."""
    return lambda *args, **kwargs: ModelInputs.from_batch(make_batch(*args, **kwargs))


@pytest.fixture
def rows() -> Callable[[SimpleNamespace, slice], SimpleNamespace]:
    """Some sequences of a batch."""
    return select
