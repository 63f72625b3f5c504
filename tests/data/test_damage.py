"""Any damage to a data set, and any arrays in a record: a clear error, or nothing wrong comes through."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, random_records, write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tolktrain.config import Config
from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.data.checks import check_data
from tolktrain.data.folder import RecordFolder
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

RECORDS = random_records(12, words=12)
ENDS = npst.arrays(np.uint32, st.integers(0, 5), elements=st.integers(0, 12))
NAMES = ("text_ids", "units", "run_lengths", "word_text_ends", "word_unit_ends")
NAMES += ("utterance_text_ends", "utterance_unit_ends")


def content(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(record.id, record.source, *(getattr(record, name).tolist() for name in NAMES)) for record in records]


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "unpacked"])
def sound_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of two shards. Tests must not change it."""
    return write_dataset(tmp_path_factory.mktemp("set") / "a", RECORDS, shard_bytes=1 << 11, packed=request.param)


@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files(
    sound_set: Path, make_config: Callable[..., Config], tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "a"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound_set, folder)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        how = data.draw(st.sampled_from(["change", "cut", "insert", "delete"]))
        if how == "change":
            damaged[place] = data.draw(st.sampled_from([*b'0129{}[],:"', 0, 255, damaged[place] ^ 1]))
        elif how == "cut":
            del damaged[max(place, 1) :]
        elif how == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            del damaged[place : place + data.draw(st.integers(1, 40))]
            damaged = damaged or bytearray(b"x")
    path.write_bytes(bytes(damaged))
    try:
        check_data(make_config({"a": folder}, {"interleaved": {"a": 1}}, sequence_length=8), TEXT_VOCAB_SIZE)
        read = RecordFolder(DatasetConfig(path=str(folder)))[:]
    except UserError as error:
        assert str(folder) in str(error) or "data.sets.a" in str(error)
    else:
        assert content(read) == content(RECORDS)


@given(
    text_ids=npst.arrays(np.uint32, st.integers(0, 12), elements=st.integers(0, TEXT_VOCAB_SIZE + 1)),
    units=npst.arrays(np.uint16, st.tuples(st.integers(0, 12), st.just(1)), elements=st.integers(0, NUM_UNITS + 1)),
    runs=npst.arrays(np.uint16, st.integers(0, 12), elements=st.integers(0, 3)),
    ends=st.tuples(ENDS, ENDS, ENDS, ENDS),
)
@settings(max_examples=400)
def test_any_arrays(text_ids: np.ndarray, units: np.ndarray, runs: np.ndarray, ends: tuple[np.ndarray, ...]) -> None:
    check_and_use(Record("r", "s", text_ids, units, runs, *ends))


@given(seed=st.integers(0, 2**32 - 1), changes=st.integers(0, 2))
@settings(max_examples=200)
def test_arrays_that_are_nearly_right(seed: int, changes: int) -> None:
    rng = np.random.default_rng(seed)
    record = random_records(1, seed=seed, words=6)[0]
    for name in rng.choice(NAMES, changes, replace=False):
        array = getattr(record, name)
        place = int(rng.integers(len(array)))
        if rng.random() < 0.5:
            changed = np.delete(array, place, axis=0)
        else:
            changed = array.copy()
            changed[place] += array.dtype.type(rng.integers(1, 4))
        record = Record(**{**vars(record), name: changed})
    check_and_use(record)


def check_and_use(record: Record) -> None:
    """A record that passes has consistent rising ends, checked without the checks' own code; and gives sequences."""
    try:
        record.check(TEXT_VOCAB_SIZE, NUM_UNITS)
    except UserError:
        return
    text, speech = record.text_ids.tolist(), record.units[:, 0].tolist()
    assert text or speech
    assert all(token < TEXT_VOCAB_SIZE for token in text) and all(unit < NUM_UNITS for unit in speech)
    assert len(record.run_lengths) == len(speech) and all(record.run_lengths.tolist())
    utterances = []
    for tokens, ends in ((text, record.utterance_text_ends), (speech, record.utterance_unit_ends)):
        if tokens:
            parts = [tokens[a:b] for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False)]
            assert all(parts) and sum(parts, []) == tokens
            utterances.append(len(parts))
    assert len(set(utterances)) == 1
    words = list(zip(record.word_text_ends.tolist(), record.word_unit_ends.tolist(), strict=True))
    if words:
        assert words[-1] == (len(text), len(speech)) and words == sorted(set(words))
        both = zip(record.utterance_text_ends.tolist(), record.utterance_unit_ends.tolist(), strict=True)
        assert set(both) <= set(words)
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS)
    strategies = [name for name, there in (("text", text), ("speech", speech), ("interleaved", words)) if there]
    strategies += ["recognition", "synthesis"] if text and speech else []
    for strategy in strategies:
        rng = sequence_rng(0, record.id, 0, strategy)
        sequence = build_sequence(record, strategy, vocabulary, 9, InterleavingConfig(), rng)  # type: ignore[arg-type]
        assert sequence.tokens.shape == (1, 10)
