"""The words that are drawn, and where they are in their sequences."""

from pathlib import Path

import numpy as np
import pytest

from tolktrain.analyze.sample import NONE, SPAN_WORDS, Sample, draw_sample
from tolktrain.config.data import DatasetConfig
from tolktrain.data.folder import RecordFolder, open_records
from tolktrain.data.records import Record
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

VOCABULARY = Vocabulary(1024, 0, 500)
LENGTH = 192


@pytest.fixture(scope="module")
def records(repository: Path) -> RecordFolder:
    return open_records(DatasetConfig(path=str(repository / "data" / "sample" / "heldout_stories")))


@pytest.fixture(scope="module")
def sample(records: RecordFolder) -> Sample:
    return draw_sample(records, VOCABULARY, 500, 60, LENGTH, seed=1)


def _words(record: Record) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Text ids and units of each word."""
    text, units = record.text_ids.tolist(), record.units[:, 0].tolist()
    bounds = [np.concatenate(([0], ends)).tolist() for ends in (record.word_text_ends, record.word_unit_ends)]
    return [
        (tuple(text[a:b]), tuple(units[c:d]))
        for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False)
    ]


def test_ends_are_the_last_tokens_of_the_same_words_in_both_sequences(records: RecordFolder, sample: Sample) -> None:
    by_id = {records[number].id: records[number] for number in range(len(records))}
    assert sample.num_words == 500 == sum(len(passage.words) for passage in sample.passages)
    assert sorted(np.concatenate([passage.words for passage in sample.passages])) == list(range(500))
    for passage in sample.passages:
        words = _words(by_id[passage.text.record_id])
        assert passage.text.length <= LENGTH + 1 and passage.speech.length <= LENGTH + 1
        assert passage.text.tokens[0, 0] == 0 and passage.speech.tokens[0, 0] == VOCABULARY.speech_eos
        assert not passage.text.is_speech.any() and passage.speech.is_speech[: passage.speech.length - 1].all()
        heard = [tuple(passage.text.tokens[0, : end + 1]) for end in passage.text_ends]
        first = next(
            n
            for n in range(len(words))
            if all(
                [*_without_eos(h, 0)] == [i for word, _ in words[n : n + k + 1] for i in word]
                for k, h in enumerate(heard)
            )
        )
        spoken = [unit for _, units in words[first : first + len(heard)] for unit in units]
        assert _without_eos(passage.speech.tokens[0, : passage.speech_ends[-1] + 1], VOCABULARY.speech_eos) == spoken
        for place, number in enumerate(passage.words):
            ids, units = words[first + place]
            assert passage.text.tokens[0, passage.text_ends[place]] == ids[-1]
            assert passage.speech.tokens[0, passage.speech_ends[place]] == units[-1] == sample.units[number]
            assert sample.text_ids[number] == ids[0]
            following = words[first + place + 1][0][0] if first + place + 1 < len(words) else NONE
            assert sample.next_text_ids[number] == following


def _without_eos(tokens: object, eos: int) -> list[int]:
    return [int(token) for token in tokens if token != eos]  # type: ignore[attr-defined]


def test_equal_words_have_equal_types(sample: Sample) -> None:
    number_of_ids: dict[int, set[int]] = {}
    for kind, first in zip(sample.types.tolist(), sample.text_ids.tolist(), strict=True):
        number_of_ids.setdefault(kind, set()).add(first)
    # Without a tokenizer, words are alike only if their ids are.
    assert all(len(ids) == 1 for ids in number_of_ids.values()) and len(number_of_ids) > 20
    assert len(set(sample.texts.tolist())) > 5


def test_spelling_joins_words_that_differ_in_case_and_punctuation(records: RecordFolder) -> None:
    spelled = draw_sample(records, VOCABULARY, 100, 0, LENGTH, 1, spell=lambda ids: " Boat," if ids[0] % 2 else "boat ")
    assert set(spelled.types.tolist()) == {0}


def test_spans_are_words_and_the_whole(sample: Sample) -> None:
    assert len(sample.spans) == 60
    for span in sample.spans:
        assert len(span.text) == len(span.speech) == SPAN_WORDS + 1
        for sequences, ends in ((span.text, span.text_ends), (span.speech, span.speech_ends)):
            read = [s.tokens[0, 1 : end + 1].tolist() for s, end in zip(sequences, ends, strict=True)]
            assert sum(read[:-1], []) == read[-1]
            assert all(len(tokens) > 0 for tokens in read)


def test_the_draw_depends_on_the_seed_only(records: RecordFolder, sample: Sample) -> None:
    again = draw_sample(records, VOCABULARY, 500, 60, LENGTH, seed=1)
    other = draw_sample(records, VOCABULARY, 500, 60, LENGTH, seed=2)
    assert np.array_equal(again.text_ids, sample.text_ids) and np.array_equal(again.units, sample.units)
    assert not np.array_equal(other.text_ids, sample.text_ids)


@pytest.mark.parametrize("num_words", [300, 2500])
def test_every_record_counts_before_one_counts_twice(records: RecordFolder, num_words: int) -> None:
    drawn = draw_sample(records, VOCABULARY, num_words, 0, LENGTH, 0)
    assert drawn.num_words == num_words
    assert drawn.num_records == min(len(drawn.passages), len(records))


def test_too_few_words(records: RecordFolder) -> None:
    with pytest.raises(UserError, match=r"20 aligned words were found, but at least 64 are needed"):
        draw_sample(records, VOCABULARY, 20, 0, LENGTH, 0)
    unaligned = [
        Record(
            **{**vars(records[0]), "word_text_ends": np.zeros(0, np.uint32), "word_unit_ends": np.zeros(0, np.uint32)}
        )
    ]
    with pytest.raises(UserError, match="0 aligned words"):
        draw_sample(unaligned, VOCABULARY, 500, 0, LENGTH, 0)
