"""Bad data is refused before the run, with a message that says how to fix it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import describe, random_records, write_dataset

from tolktrain.config import Config
from tolktrain.data.checks import check_data
from tolktrain.data.records import DatasetInfo
from tolktrain.errors import UserError
from tolktrain.units.load import describe_speech_tokenizer
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis
from tolktrain.vocabulary import Vocabulary

MakeConfig = Callable[..., Config]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data set to break: packed shards, aligned."""
    return write_dataset(tmp_path / "stories", random_records(40))


@pytest.fixture
def refusal(make_config: MakeConfig) -> Callable[..., str]:
    """The message with which a data set is refused."""

    def check(folder: Path, mixture: dict[str, Any] | None = None, text_vocab_size: int = 100, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            check_data(make_config({"a": folder}, mixture, **options), text_vocab_size)
        return str(caught.value)

    return check


def edit(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def test_sound_sets_pass(folder: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    write_dataset(tmp_path / "texts", random_records(9, speech=False, aligned=False), packed=False)
    write_dataset(tmp_path / "sounds", random_records(9, text=False, aligned=False))
    write_dataset(tmp_path / "unaligned", random_records(9, aligned=False))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config = make_config(
        {"a": folder, "t": tmp_path / "texts", "s": tmp_path / "sounds", "u": tmp_path / "unaligned"},
        {"text": {"a": 1, "t": 1}, "speech": {"s": 1, "u": 1}, "interleaved": {"a": 1}, "recognition": {"u": 1}},
        validation={"sets": ["a"]},
    )
    assert check_data(config, 120) == Vocabulary(120, 0, 50, 1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_tokenizers_that_are_named_are_those_of_the_data(tmp_path: Path, make_config: MakeConfig) -> None:
    tokenizer = LogMelTokenizer(np.arange(50 * 80, dtype=np.float32).reshape(50, 80), LogMelAnalysis())
    tokenizer.save(tmp_path / "units")
    other = LogMelTokenizer(np.ones((50, 80), np.float32), LogMelAnalysis())
    other.save(tmp_path / "other")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    records = random_records(9)
    folder = write_dataset(tmp_path / "stories", records)
    text = {**describe(records).model_dump()["text"], "sha256": hashlib.sha256(b"{}").hexdigest()}
    edit(folder, "dataset.json", text=text, speech=vars(describe_speech_tokenizer(tmp_path / "units")))
    named = {"text_tokenizer": str(tmp_path / "text"), "speech_tokenizer": str(tmp_path / "units")}
    check_data(make_config({"a": folder}, **named), 100)
    with pytest.raises(UserError, match=r"data.speech_tokenizer \(.*other.*was made with.*in the folder of the data"):
        check_data(make_config({"a": folder}, **named | {"speech_tokenizer": str(tmp_path / "other")}), 100)
    (tmp_path / "text" / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match=r"data.text_tokenizer \(.*is not the tokenizer that data.sets.a was made with"):
        check_data(make_config({"a": folder}, **named), 100)


def test_missing_folder_and_files(folder: Path, refusal: Callable[..., str]) -> None:
    missing = folder.parent / "nowhere"
    place = "data.sets.a, used by train.stages[0].mixture.text: "
    problem = f"the data set folder {missing} does not exist; correct the path, or copy the data set there"
    assert refusal(missing) == place + problem
    missing.mkdir()
    assert f"the data set folder {missing} is empty; copy the data set again" in refusal(missing)
    index = (folder / "index.json").read_text()
    (folder / "index.json").unlink()
    assert f"{place}{folder}/index.json does not exist" in refusal(folder)
    (folder / "index.json").write_text(index[:50])
    assert "index.json is not a readable MDS index" in refusal(folder)
    (folder / "index.json").write_text('{"version": 2, "shards": []}')
    assert f"the data set {folder} is empty: index.json lists no records" in refusal(folder)
    (folder / "index.json").write_text('{"version": 3, "shards": []}')
    assert "index.json has the MDS version 3, expected 2" in refusal(folder)
    (folder / "index.json").write_text(index)
    (folder / "dataset.json").unlink()
    assert f"{folder}/dataset.json does not exist" in refusal(folder)


def test_shards(folder: Path, refusal: Callable[..., str]) -> None:
    shard = folder / "shard.00001.mds.zstd"
    content = shard.read_bytes()
    shard.unlink()
    place = "data.sets.a, used by train.stages[0].mixture.text: "
    assert refusal(folder) == f"{place}the shard {shard} is missing, but index.json lists it; copy it again"
    shard.write_bytes(content[:-7])
    size = len(content)
    assert f"{shard} is truncated or was changed: it has {size - 7} bytes, index.json says {size}" in refusal(folder)
    middle = size // 2
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert f"the shard {shard} is corrupted: its sha1 differs from the one in index.json" in refusal(folder)
    shard.write_bytes(content)
    (folder / "shard.00001.mds").write_bytes(b"left over")
    assert "shard.00001.mds is truncated or was changed" in refusal(folder)


def test_another_schema(folder: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    edit(folder, "dataset.json", schema_version=7)
    assert "schema_version is 7, but this version of tolktrain reads 1" in refusal(folder)
    edit(folder, "dataset.json", schema_version=1, speech=None)
    assert "but the record schema of this version of tolktrain has {'id': 'str'," in refusal(folder)
    edit(folder, "dataset.json", text=None)
    assert "declares neither text nor speech" in refusal(folder)
    edit(
        folder, "index.json", shards=[{**json.loads((folder / "index.json").read_text())["shards"][0], "format": "csv"}]
    )
    assert "index.json lists a shard that cannot be read" in refusal(folder)


def test_pickled_columns_are_refused(folder: Path, refusal: Callable[..., str]) -> None:
    shards = json.loads((folder / "index.json").read_text())["shards"]
    shards[0]["column_encodings"][0] = "pkl"
    edit(folder, "index.json", shards=shards)
    assert "the column encoding 'pkl' is not one of records" in refusal(folder)


def test_incomplete_copy(folder: Path, refusal: Callable[..., str]) -> None:
    edit(folder, "dataset.json", num_records=41)
    assert "index.json lists 40 records but dataset.json declares 41" in refusal(folder)


def test_vocabularies(folder: Path, refusal: Callable[..., str]) -> None:
    assert "data.sets.a has a text vocabulary of 100 ids but the model has 90" in refusal(folder, text_vocab_size=90)
    assert "data.sets.a has 50 speech units but model.speech.num_units is 49" in refusal(
        folder, speech={"num_units": 49}
    )
    assert "has 1 codebooks but model.speech.num_codebooks is 2" in refusal(folder, speech={"num_codebooks": 2})
    edit(folder, "dataset.json", text={"vocab_size": 100, "eos_id": 100, "sha256": ""})
    assert "ends utterances with the text id 100, which the model's vocabulary of 100 ids lacks" in refusal(folder)


def test_units_outside_the_vocabulary(tmp_path: Path, refusal: Callable[..., str]) -> None:
    records = random_records(40)
    records[33].units[4] = 50
    folder = write_dataset(tmp_path / "set", records)
    assert refusal(folder) == (
        f"data.sets.a, used by train.stages[0].mixture.text: {folder}: record 'r0033': units holds 50, which is"
        " outside the speech vocabulary of 50 ids;"
        " rebuild the data set with the tokenizer that dataset.json names"
    )


def test_strategies_need_their_modalities(tmp_path: Path, refusal: Callable[..., str]) -> None:
    texts = write_dataset(tmp_path / "texts", random_records(9, speech=False, aligned=False))
    sounds = write_dataset(tmp_path / "sounds", random_records(9, text=False, aligned=False))
    unaligned = write_dataset(tmp_path / "unaligned", random_records(9, aligned=False))
    message = refusal(texts, {"text": {"a": 1.0}, "synthesis": {"a": 1.0}})
    assert message == (
        f"data.sets.a ({texts}), used by train.stages[0].mixture.synthesis, has no speech, which the strategy"
        " 'synthesis' needs; use it for 'text' only"
    )
    assert "has no text, which the strategy 'text' needs" in refusal(sounds, {"text": {"a": 1.0}})
    assert "has no word alignment" in refusal(unaligned, {"interleaved": {"a": 1.0}})
    validation = {"sets": ["a"], "strategies": ["speech"]}
    assert "used by train.validation, has no speech" in refusal(texts, {"text": {"a": 1.0}}, validation=validation)


@pytest.mark.parametrize(
    ("strategy", "longest"),
    [
        ("text", lambda info: info.longest_text),
        ("speech", lambda info: info.longest_speech),
        ("interleaved", lambda info: info.longest_speech),
        ("recognition", lambda info: info.longest_text + info.longest_speech),
    ],
)
def test_sequence_length(
    folder: Path,
    refusal: Callable[..., str],
    make_config: MakeConfig,
    strategy: str,
    longest: Callable[[DatasetInfo], int],
) -> None:
    limit = longest(describe(random_records(40)))
    message = refusal(folder, {strategy: {"a": 1.0}}, sequence_length=limit + 1)
    assert message == (
        f"train.sequence_length {limit + 1} is longer than any record of data.sets.a under"
        f" train.stages[0].mixture.{strategy}: the longest has {limit} tokens; lower it, or build the data set"
        " from longer passages"
    )
    check_data(make_config({"a": folder}, {strategy: {"a": 1.0}}, sequence_length=limit), 100)


def test_tokenizers_must_agree(folder: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    edit(other, "dataset.json", text={"vocab_size": 100, "eos_id": 0, "sha256": "another"})
    with pytest.raises(UserError, match="data.sets.a and data.sets.b were made by different text tokenizers"):
        check_data(make_config({"a": folder, "b": other}, {"text": {"a": 1.0, "b": 1.0}}), 100)


def test_remote_sets(folder: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    cache = tmp_path / "cache"
    config = make_config({"a": {"path": str(cache), "remote": str(folder)}})
    check_data(config, 100)
    assert sorted(path.name for path in cache.iterdir()) == ["dataset.json", "index.json"], "shards stay where they are"
    config = make_config({"a": {"path": str(tmp_path / "cache2"), "remote": str(tmp_path / "nowhere")}})
    with pytest.raises(
        UserError, match="nowhere/index.json cannot be fetched: it does not exist .*; check the bucket and the folder"
    ):
        check_data(config, 100)
    assert list((tmp_path / "cache2").iterdir()) == [], "nothing half-fetched is left"
