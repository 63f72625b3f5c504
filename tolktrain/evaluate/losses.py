"""Held-out losses per strategy and modality, with those of the bigram baselines on the same positions."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tolktrain.data.batch import Batch
from tolktrain.evaluate.baselines import Baselines
from tolktrain.evaluate.scoring import WHOLE, Share, TokenNll

_MODALITIES = ("text", "speech")


def heldout_losses(
    batches: Iterable[Batch], token_nll: TokenNll, baselines: Baselines | None, share: Share = WHOLE
) -> dict[str, Any]:
    """Losses in nats per scored token, on every rank. Collective if the work is shared.

    Sums of batches are added in the order of the batches, so the result does not depend on the number of ranks.

    Returns:
        `sequences`; `loss` over all scored positions; `text` and `speech`, each None if nothing of it is scored, else
        `loss`, `positions`, `bigram_loss` and `ratio` (loss / bigram_loss), the last two None without a baseline.
    """

    def own() -> list[_BatchSums]:
        found = []
        for batch in itertools.islice(batches, share.rank, None, share.world_size):
            found.append(_batch_sums(batch, token_nll, baselines))
            share.touch()
        return found

    parts = share.gather(own)
    ordered = [part[place] for place in range(max(map(len, parts))) for part in parts if place < len(part)]
    sums = {name: _Sums() for name in _MODALITIES}
    for found in ordered:
        for name in _MODALITIES:
            sums[name].add(*found.by_modality[name])
    positions = sum(part.positions for part in sums.values())
    total = sum(part.nll for part in sums.values())
    return {
        "sequences": sum(found.sequences for found in ordered),
        "loss": total / positions if positions else None,
        "text": sums["text"].figures(),
        "speech": sums["speech"].figures(),
    }


@dataclass(frozen=True)
class _BatchSums:
    """Of one batch the sequences, and by modality positions, the model's and the baseline's sums in nats."""

    sequences: int
    by_modality: dict[str, tuple[int, float, float | None]]


def _batch_sums(batch: Batch, token_nll: TokenNll, baselines: Baselines | None) -> _BatchSums:
    nll = token_nll(batch)
    text, speech = batch.text_pred.numpy(), batch.speech_pred.numpy()
    found = {}
    for name, scored in (("text", text), ("speech", speech)):
        baseline = None
        if baselines is not None:
            baseline = baselines.text_nll(batch) if name == "text" else baselines.speech_nll(batch)
        below = None if baseline is None else float(baseline[scored].sum())
        found[name] = (int(scored.sum()), float(nll[scored].sum(dtype=np.float64)), below)
    return _BatchSums(int((text | speech).any(axis=1).sum()), found)


class _Sums:
    """Sums over the scored positions of one modality."""

    def __init__(self) -> None:
        self.positions = 0
        self.nll = 0.0
        self.baseline: float | None = 0.0

    def add(self, positions: int, nll: float, baseline: float | None) -> None:
        self.positions += positions
        self.nll += nll
        if self.baseline is not None:
            self.baseline = None if baseline is None else self.baseline + baseline

    def figures(self) -> dict[str, Any] | None:
        if not self.positions:
            return None
        loss = self.nll / self.positions
        bigram = None if self.baseline is None else self.baseline / self.positions
        ratio = loss / bigram if bigram else None
        return {"loss": loss, "positions": self.positions, "bigram_loss": bigram, "ratio": ratio}
