"""Records: what is written is read, and what cannot be right is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import describe, random_record, random_records, write_dataset
from small_disk import MakeDisk

from tolktrain.config.data import DatasetConfig
from tolktrain.data.folder import open_records
from tolktrain.data.records import DatasetInfo, Record, columns_of
from tolktrain.errors import UserError

KINDS = (
    {},
    {"num_codebooks": 3},
    {"aligned": False},
    {"speech": False, "aligned": False},
    {"text": False, "aligned": False},
)


def assert_same(one: Record, two: Record) -> None:
    for name, value in vars(one).items():
        other = getattr(two, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype and (value.size == other.size == 0 or np.array_equal(value, other)), name
        else:
            assert value == other


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("packed", [True, False])
def test_round_trip_over_shards(tmp_path: Path, options: dict[str, bool], packed: bool) -> None:
    records = random_records(30, **options)
    folder = write_dataset(tmp_path / "set", records, shard_bytes=4096, packed=packed)
    before = sorted(path.name for path in folder.iterdir())
    assert len(before) > 4
    opened = open_records(DatasetConfig(path=str(folder)))
    assert len(opened) == 30
    for index in (*range(30), 17, 3, -1):
        assert_same(opened[index], records[index])
    assert [record.id for record in opened[3:9:2]] == ["r0003", "r0005", "r0007"]
    assert [record.id for record in opened] == [record.id for record in records]
    with pytest.raises(IndexError, match="record 30 of 30"):
        opened[30]
    assert sorted(path.name for path in folder.iterdir()) == before, "reading must leave the folder as it is"
    assert opened.info == describe(records)
    for record in records:
        record.check(100, 50, options.get("num_codebooks", 1))


def test_columns_need_no_pickles() -> None:
    assert set(columns_of().values()) == {"str", "ndarray:uint16", "ndarray:uint32"}
    assert columns_of(speech=False, aligned=False).keys() == {"id", "source", "text_ids", "utterance_text_ends"}


def u32(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


def broken(record: Record, **changes: object) -> Record:
    return replace(record, **changes)  # type: ignore[arg-type]


def test_bad_records_are_refused() -> None:
    record = random_record(np.random.default_rng(0), "r7", 10)
    num_ids, num_rows = len(record.text_ids), len(record.units)
    too_large = record.units.copy()
    too_large[3] = 50
    inside_a_word = next(i for i in range(1, num_ids) if i not in record.word_text_ends)
    cases = {
        "units holds 50, which is outside the speech vocabulary of 50 ids": broken(record, units=too_large),
        "text_ids holds 100, which is outside the text vocabulary": broken(
            record, text_ids=np.full_like(record.text_ids, 100)
        ),
        r"units have the shape .*; expected \[n, 1\]": broken(record, units=np.repeat(record.units, 2, axis=1)),
        "run_lengths must give a positive number": broken(record, run_lengths=record.run_lengths[:-1]),
        "run_lengths must give a positive number of frames": broken(record, run_lengths=record.run_lengths * 0),
        f"word_text_ends must rise strictly .*, {num_ids}": broken(record, word_text_ends=record.word_text_ends[::-1]),
        f"word_unit_ends must rise strictly .*, {num_rows}": broken(record, word_unit_ends=record.word_unit_ends * 2),
        "word_text_ends and word_unit_ends differ in length": broken(record, word_unit_ends=u32(num_rows)),
        "utterance_text_ends and utterance_unit_ends differ": broken(record, utterance_text_ends=u32(num_ids)),
        "utterances must end where a word ends": broken(
            record, utterance_text_ends=u32(inside_a_word, num_ids), utterance_unit_ends=u32(1, num_rows)
        ),
        "it holds neither text nor speech": broken(record, text_ids=u32(), units=np.zeros((0, 1), np.uint16)),
    }
    for message, case in cases.items():
        with pytest.raises(UserError, match=f"record 'r7': {message}"):
            case.check(100, 50)
    with pytest.raises(UserError, match="declares no speech vocabulary"):
        record.check(100, None)


def test_dataset_description(tmp_path: Path) -> None:
    info = describe(random_records(3))
    info.write(tmp_path)
    assert DatasetInfo.read(tmp_path) == info
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    path = tmp_path / "dataset.json"
    good = json.loads(path.read_text())
    for content, message in (
        (json.dumps(good)[:-9], "dataset.json is not readable JSON"),
        ("[]", "schema_version is None, but this version of tolktrain reads 1"),
        (json.dumps(good | {"schema_version": 3}), "schema_version is 3, but this version of tolktrain reads 1 and 2;"),
        (json.dumps(good | {"schema_version": 2}), "schema_version 2 and `conversations` belong together"),
        (json.dumps(good | {"num_records": "many", "extra": 1}), "num_records: .*; extra: "),
        # What is measured, and models, have a row for each id.
        (json.dumps(good | {"text": good["text"] | {"vocab_size": 10**12}}), "text.vocab_size: .*16777216"),
        (json.dumps(good | {"speech": good["speech"] | {"num_units": 10**12}}), "speech.num_units: .*65536"),
        (json.dumps(good | {"speech": good["speech"] | {"num_codebooks": 10**12}}), "speech.num_codebooks: .*256"),
        (json.dumps(good | {"speech": good["speech"] | {"frames_per_second": 1e999}}), "frames_per_second: "),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            DatasetInfo.read(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="dataset.json does not exist; a data set folder needs it next to index.json"):
        DatasetInfo.read(tmp_path)


def test_a_full_disk_keeps_the_description(make_disk: MakeDisk) -> None:
    disk = make_disk(64)
    (disk.path / "dataset.json").write_text("the last description")
    disk.refuses(lambda: describe(random_records(3)).write(disk.path), "'.*/dataset.json'")
