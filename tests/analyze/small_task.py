"""A task without a model, for measures of invented states."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tolktrain.analyze.measures.base import Task
from tolktrain.analyze.moments import PairMoments
from tolktrain.analyze.sample import Sample
from tolktrain.model.architecture import Architecture

LAYER = "layer 1"


def small_sample(num_words: int, **columns: Any) -> Sample:
    """Words without sequences; each is of its own type and text unless columns say otherwise."""
    own = np.arange(num_words, dtype=np.int64)
    names = ("types", "next_types", "text_ids", "next_text_ids", "units", "texts")
    return replace(Sample((), (), *[own] * len(names), num_records=num_words), **columns)


def small_task(
    sample: Sample,
    width: int,
    dimensions: int = 4,
    moments: Mapping[str, PairMoments] | None = None,
    text_logits: Callable[[str, torch.Tensor], torch.Tensor] = lambda layer, hidden: hidden,
) -> Task:
    """One layer of states of this width."""
    architecture = Architecture(
        hidden_size=width, num_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=width,
        ffn_hidden_size=width, text_vocab_size=width, rope_theta=1e4, rms_norm_eps=1e-5, tie_text_embeddings=True,
        initializer_range=0.02, num_units=10, num_codebooks=1, input_adapter_layers=0, output_adapter_layers=0,
        layer_pooling="both", residual=True,
    )  # fmt: skip
    return Task(sample, architecture, (LAYER,), dimensions, 0, moments or {}, text_logits, None)


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    """Independent normal numbers, float64."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(x: torch.Tensor, y: torch.Tensor, rows: int = 64) -> PairMoments:
    """The pairs, added a few at a time."""
    moments = PairMoments()
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        moments.add(a, b)
    return moments
