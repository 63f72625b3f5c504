"""Held-out losses against sums made by hand."""

import numpy as np
import pytest
from stub_model import VOCABULARY, random_nll, regular_record

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.evaluate.baselines import Baselines, fit_baselines
from tolktrain.evaluate.losses import heldout_losses

RECORDS = [regular_record(f"r{i}", first=5 * i) for i in range(8)]


def _batches(strategy: str) -> list[Batch]:
    interleaving = InterleavingConfig(text_words=(2, 4), speech_words=(1, 3))
    sequences = [
        build_sequence(r, strategy, VOCABULARY, 40, interleaving, sequence_rng(0, r.id, 0, "test"))  # type: ignore[arg-type]
        for r in RECORDS
    ]
    return [collate(sequences[:5]), collate(sequences[5:])]


def test_modalities_are_summed_apart() -> None:
    batches = _batches("interleaved")
    baselines = fit_baselines(RECORDS, VOCABULARY)
    found = heldout_losses(batches, random_nll, baselines)
    nll = np.concatenate([random_nll(batch) for batch in batches])
    for name in ("text", "speech"):
        mask = np.concatenate([getattr(batch, f"{name}_pred").numpy() for batch in batches])
        bigram = np.concatenate([getattr(baselines, f"{name}_nll")(batch) for batch in batches])
        figures = found[name]
        assert figures["positions"] == mask.sum() > 0
        assert figures["loss"] == pytest.approx(nll[mask].mean())
        assert figures["bigram_loss"] == pytest.approx(bigram[mask].mean())
        assert figures["ratio"] == pytest.approx(nll[mask].mean() / bigram[mask].mean())
    assert found["loss"] == pytest.approx(nll.sum() / sum(found[m]["positions"] for m in ("text", "speech")))
    assert found["sequences"] == len(RECORDS)


def test_modality_that_is_not_scored_is_none() -> None:
    found = heldout_losses(_batches("text"), random_nll, None)
    assert found["speech"] is None
    assert found["text"]["bigram_loss"] is None and found["text"]["ratio"] is None


def test_missing_baseline_of_one_modality() -> None:
    text_only = Baselines(fit_baselines(RECORDS, VOCABULARY).text, None)
    found = heldout_losses(_batches("interleaved"), random_nll, text_only)
    assert found["text"]["bigram_loss"] > 0 and found["speech"]["bigram_loss"] is None


def test_nothing_scored() -> None:
    assert heldout_losses([], random_nll, None) == {"sequences": 0, "loss": None, "text": None, "speech": None}
