"""Statistics against sums written out by hand."""

import math
import statistics as reference
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, describe, random_records

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.batch import collate
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.inspect.picture import save_picture
from tolktrain.inspect.spans import take_apart
from tolktrain.inspect.statistics import Statistics
from tolktrain.vocabulary import Vocabulary

VOCABULARY = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS)


def measure(
    records: list[Record],
    strategy: Strategy,
    length: int = 40,
    spans: InterleavingConfig | None = None,
    codebooks: int = 1,
) -> Statistics:
    spans = spans or InterleavingConfig()
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS, codebooks)
    return Statistics.of(
        describe(records), (take_apart(record, strategy, vocabulary, length, spans, 3) for record in records)
    )


def test_rates_and_lengths() -> None:
    records = random_records(9, seed=4)
    found = measure(records, "interleaved")
    runs = [int(frames) for record in records for frames in record.run_lengths]
    words = sum(len(record.word_text_ends) for record in records)
    rates = found.rates()
    assert rates["hours"] == pytest.approx(sum(runs) / 25 / 3600)
    assert rates["units_per_second"] == pytest.approx(len(runs) / (sum(runs) / 25))
    assert rates["words_per_second"] == pytest.approx(words / (sum(runs) / 25))
    assert rates["units_per_word"] == pytest.approx(len(runs) / words)
    run = found.distributions()["run_length"]
    assert (run.count, run.mean, run.largest) == (len(runs), pytest.approx(reference.mean(runs)), max(runs))
    assert run.median == reference.median(runs)
    ordered = sorted(runs)
    place = 0.99 * (len(runs) - 1)
    below = ordered[math.floor(place)]
    assert run.percentile_99 == pytest.approx(below + (place % 1) * (ordered[math.ceil(place)] - below))


def test_lengths_of_words_utterances_and_records() -> None:
    records = random_records(5, seed=1)
    found = measure(records, "interleaved")
    expected: dict[str, list[float]] = {name: [] for name in ("units_per_word", "utterance_text", "record_units")}
    for record in records:
        for word, end in enumerate(record.word_unit_ends):
            expected["units_per_word"].append(int(end) - (int(record.word_unit_ends[word - 1]) if word else 0))
        for utterance, end in enumerate(record.utterance_text_ends):
            begin = int(record.utterance_text_ends[utterance - 1]) if utterance else 0
            expected["utterance_text"].append(int(end) - begin + 1)
        expected["record_units"].append(len(record.units) + len(record.utterance_unit_ends))
    for name, values in expected.items():
        assert found.values(name).tolist() == values, name
    per_record = [len(r.units) / (sum(map(int, r.run_lengths)) / 25) for r in records]
    assert found.values("units_per_second").tolist() == pytest.approx(per_record)


def test_use_of_units() -> None:
    records = random_records(3, seed=2, words=8, num_codebooks=2)
    found = measure(records, "speech", codebooks=2).unit_use()
    for codebook, use in enumerate(found):
        counts = Counter(int(unit) for record in records for unit in record.units[:, codebook])
        total = sum(counts.values())
        entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
        assert (use.used, use.num_units) == (len(counts), NUM_UNITS)
        assert 0 < use.used < NUM_UNITS
        assert use.entropy_bits == pytest.approx(entropy)
        assert use.perplexity == pytest.approx(math.exp(entropy * math.log(2)))
        assert [share for _, share in use.most_frequent] == [n / total for _, n in counts.most_common(5)]
        assert all(counts[unit] / total == share for unit, share in use.most_frequent)


def test_words_per_span() -> None:
    records = random_records(12, seed=5)
    fixed = measure(records, "interleaved", 60, InterleavingConfig(text_words=(3, 3), speech_words=(2, 2)))
    assert set(fixed.values("text_span_words").tolist()) == {3}
    assert set(fixed.values("speech_span_words").tolist()) == {2}
    drawn = measure(records, "interleaved", 200, InterleavingConfig(text_words=(2, 5), speech_words=(1, 3)))
    assert set(drawn.values("text_span_words").tolist()) == {2, 3, 4, 5}
    assert set(drawn.values("speech_span_words").tolist()) == {1, 2, 3}
    assert not len(measure(records, "speech").values("speech_span_words"))


@pytest.mark.parametrize("strategy", ["interleaved", "synthesis"])
def test_share_of_scored_tokens_is_that_of_batches(strategy: Strategy) -> None:
    records, length = random_records(7, seed=6), 50
    rates = measure(records, strategy, length).rates()
    batch = collate(
        [
            build_sequence(r, strategy, VOCABULARY, length, InterleavingConfig(), sequence_rng(3, r.id, 0, "sequence"))
            for r in records
        ]
    )
    targets = len(records) * length
    assert rates["scored_text_share"] == batch.num_text_scored / targets
    assert rates["scored_speech_share"] == batch.num_speech_scored / targets
    assert rates["scored_share"] == pytest.approx((batch.num_text_scored + batch.num_speech_scored) / targets)


@pytest.mark.parametrize(
    ("options", "strategy", "absent"),
    [
        ({"speech": False, "aligned": False}, "text", "run_length"),
        ({"text": False, "aligned": False}, "speech", "utterance_text"),
        ({"aligned": False}, "recognition", "units_per_word"),
        ({"num_codebooks": 3}, "interleaved", ""),
    ],
)
def test_sets_that_lack_something_are_measured_and_drawn(
    options: dict[str, bool], strategy: Strategy, absent: str, tmp_path: Path
) -> None:
    import matplotlib.image

    found = measure(random_records(1, words=5, **options), strategy, codebooks=int(options.get("num_codebooks", 1)))
    assert absent not in found.distributions()
    save_picture(found, tmp_path / "picture.png")
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert pixels.shape[0] > 300 and float(np.ptp(pixels)) > 0.5


def test_a_name_is_drawn_as_it_is(tmp_path: Path) -> None:
    """Neither as a formula that cannot be read, nor with characters that no font has."""
    found = measure(random_records(1, words=5), "text")
    found.info = found.info.model_copy(update={"name": "$x^{$ \x1b[2J\u202e\ud800"})
    save_picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
