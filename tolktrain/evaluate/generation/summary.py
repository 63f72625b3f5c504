"""From the items of generated speech to the rows of generation.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tolktrain.evaluate.intervals import ratio_interval
from tolktrain.evaluate.ngram import FloatArray

KINDS = ("generated", "bigram", "synthesis", "resynthesis", "recording")
"""What is judged: the prompt and its continuation by the model, or by a bigram of units; a text read by the model; a
recording from its units; the recording."""


@dataclass(frozen=True)
class SpokenItem:
    """One piece of speech, and what was measured of it."""

    id: str  # of the recording
    kind: str
    seconds: float  # without the prompt
    units: int  # without the prompt
    transcript: str | None = None  # by speech recognition; of prompt and continuation
    auto_bleu: float | None = None
    nll: float | None = None  # of the transcript, a sum in nats
    tokens: int | None = None  # that it is of
    edits: int | None = None  # words to change to get the reference
    words: int | None = None  # of the reference


def rows(items: Sequence[SpokenItem]) -> list[dict[str, Any]]:
    """A row per kind, see `evaluate_generation`."""
    return [_row(kind, own) for kind in KINDS if (own := [item for item in items if item.kind == kind])]


def _row(kind: str, items: Sequence[SpokenItem]) -> dict[str, Any]:
    seconds = sum(item.seconds for item in items)
    row: dict[str, Any] = {
        "kind": kind,
        "samples": len(items),
        "seconds": seconds / len(items),
        "units_per_second": sum(item.units for item in items) / seconds if seconds else None,
    }
    heard = [item for item in items if item.transcript is not None]
    if heard:
        values = _array([item.auto_bleu for item in heard])
        row["empty"] = sum(not item.transcript for item in heard)
        row |= _named("auto_bleu", values, np.ones(len(values)))
    judged = [item for item in items if item.tokens is not None]
    if judged:
        scored = [item for item in judged if item.tokens]
        row["unscored"] = len(judged) - len(scored)
        means = _array([item.nll for item in scored]) / _array([item.tokens for item in scored])
        found = _named("genppl", means, np.ones(len(means)))
        row |= {key: None if value is None else float(np.exp(value)) for key, value in found.items()}
    compared = [item for item in items if item.words]
    if compared:
        row |= _named("wer", _array([item.edits for item in compared]), _array([item.words for item in compared]))
        row["words"] = sum(item.words or 0 for item in compared)
    return row


def _array(values: Sequence[float | None]) -> FloatArray:
    return np.array(values, np.float64)


def _named(name: str, parts: FloatArray, wholes: FloatArray) -> dict[str, float | None]:
    """sum(parts) / sum(wholes) and its interval; None if there is nothing."""
    if not len(parts):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = ratio_interval(parts, wholes)
    return {name: float(parts.sum() / wholes.sum()), f"{name}_low": low, f"{name}_high": high}
