"""Held-out losses per strategy and modality, with those of the bigram baselines on the same positions."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tolktrain.data.batch import Batch
from tolktrain.evaluate.baselines import Baselines
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.scoring import TokenNll


def heldout_losses(batches: Iterable[Batch], token_nll: TokenNll, baselines: Baselines | None) -> dict[str, Any]:
    """Losses in nats per scored token.

    Returns:
        `sequences`; `loss` over all scored positions; `text` and `speech`, each None if nothing of it is scored, else
        `loss`, `positions`, `bigram_loss` and `ratio` (loss / bigram_loss), the last two None without a baseline.
    """
    sums = {"text": _Sums(), "speech": _Sums()}
    sequences = 0
    for batch in batches:
        nll = token_nll(batch)
        text, speech = batch.text_pred.numpy(), batch.speech_pred.numpy()
        sequences += int((text | speech).any(axis=1).sum())
        sums["text"].add(nll, text, baselines.text_nll(batch) if baselines else None)
        sums["speech"].add(nll, speech, baselines.speech_nll(batch) if baselines else None)
    positions = sum(part.positions for part in sums.values())
    total = sum(part.nll for part in sums.values())
    return {
        "sequences": sequences,
        "loss": total / positions if positions else None,
        "text": sums["text"].figures(),
        "speech": sums["speech"].figures(),
    }


class _Sums:
    """Sums over the scored positions of one modality."""

    def __init__(self) -> None:
        self.positions = 0
        self.nll = 0.0
        self.baseline: float | None = 0.0

    def add(self, nll: FloatArray, scored: np.ndarray, baseline: FloatArray | None) -> None:
        self.positions += int(scored.sum())
        self.nll += float(nll[scored].sum(dtype=np.float64))
        if self.baseline is not None:
            self.baseline = None if baseline is None else self.baseline + float(baseline[scored].sum())

    def figures(self) -> dict[str, Any] | None:
        if not self.positions:
            return None
        loss = self.nll / self.positions
        bigram = None if self.baseline is None else self.baseline / self.positions
        ratio = loss / bigram if bigram else None
        return {"loss": loss, "positions": self.positions, "bigram_loss": bigram, "ratio": ratio}
