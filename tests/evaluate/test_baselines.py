"""Baselines see the positions that the model is scored on, and the inputs there as histories."""

import numpy as np
import pytest
from stub_model import VOCABULARY, regular_record

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.batch import collate
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.evaluate.baselines import fit_baselines
from tolktrain.evaluate.ngram import UNKNOWN
from tolktrain.vocabulary import Vocabulary

STRATEGIES: list[Strategy] = ["text", "speech", "interleaved", "recognition", "synthesis"]


def _records(num_codebooks: int = 1) -> list[Record]:
    return [regular_record(f"r{i}", first=7 * i, num_codebooks=num_codebooks) for i in range(12)]


@pytest.mark.parametrize("num_codebooks", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_scored_position_against_a_plain_loop(strategy: Strategy, num_codebooks: int) -> None:
    vocabulary = Vocabulary(100, 0, 50, num_codebooks)
    records = _records(num_codebooks)
    baselines = fit_baselines(records, vocabulary)
    interleaving = InterleavingConfig(text_words=(2, 4), speech_words=(1, 3))
    batch = collate(
        [build_sequence(r, strategy, vocabulary, 40, interleaving, sequence_rng(0, r.id, 0, "test")) for r in records]
    )
    text, speech = baselines.text_nll(batch), baselines.speech_nll(batch)
    assert baselines.text is not None and baselines.speech is not None and text is not None and speech is not None
    assert not text[~batch.text_pred.numpy()].any() and not speech[~batch.speech_pred.numpy()].any()
    for b, t in zip(*np.nonzero((batch.text_pred | batch.speech_pred).numpy()), strict=True):
        heard = bool(batch.speech_in[b, t])
        if batch.text_pred[b, t]:
            before = int(batch.tokens[b, 0, t])
            history = UNKNOWN if heard or before >= 100 else before
            target = int(batch.targets[b, 0, t])
            assert text[b, t] == pytest.approx(-baselines.text.log_probs(np.array([history]), np.array([target]))[0])
        else:
            total = 0.0
            for k, bigram in enumerate(baselines.speech):
                target = int(batch.targets[b, k, t])
                if target != vocabulary.speech_pad:
                    before = int(batch.tokens[b, k, t])
                    history = before if heard and before != vocabulary.speech_pad else UNKNOWN
                    total -= bigram.log_probs(np.array([history]), np.array([target]))[0]
            assert speech[b, t] == pytest.approx(total)


def test_eos_is_part_of_the_streams() -> None:
    baselines = fit_baselines(_records(), VOCABULARY)
    assert baselines.text is not None and baselines.speech is not None
    assert baselines.text.target_counts[0] == 12 * 10
    assert baselines.speech[0].target_counts[VOCABULARY.speech_eos] == 12 * 10
    assert baselines.speech[0].vocab_size == 51


def test_absent_modality_has_no_baseline() -> None:
    none = np.zeros(0, np.uint32)
    full = regular_record("r", 0)
    heard = Record("r", "voice", none, full.units, full.run_lengths, none, none, none, full.utterance_unit_ends)
    baselines = fit_baselines([heard], VOCABULARY)
    assert baselines.text is None and baselines.speech is not None
