"""Odd addresses on a server: the objects get exactly the keys that the addresses say, or nothing is written."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3_server import S3Server
from warm import Warm

from tolktrain.config.data import DatasetConfig
from tolktrain.config.root import CheckpointConfig, Config, RunConfig
from tolktrain.data.folder import fetch_descriptions
from tolktrain.errors import UserError
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

BRIEF = RetryPolicy(retries=0, timeout_seconds=10.0)
SPECIAL = "#?%;&=+/.\\ ~$@!*'()[]{}<>^`|,:\"" + string.digits + "abäéñ語🎉\u0301"


def keys_of(server: S3Server, bucket: str) -> set[str]:
    """All keys of a bucket, by a client that knows nothing of ours."""
    listing = server.client().list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    return {entry["Key"] for entry in listing.get("Contents", [])}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folder=st.text(SPECIAL, min_size=1, max_size=12), name=st.text(SPECIAL.replace("/", ""), min_size=1, max_size=6))
@example(folder="run#3", name="index.json")
@example(folder="run?versionId=1", name="x")
@example(folder="a%2Fb", name="c%23d")
@example(folder="a//b", name="c")
@example(folder="a/../b", name="c")
@example(folder="/a", name="c")
@example(folder="a//", name="c")
@example(folder=" a ", name=" ")
@example(folder="e\u0301/é", name="語")
@pytest.mark.slow
def test_keys_are_those_of_the_address(
    s3_server: S3Server, bucket: str, tmp_path: Path, folder: str, name: str
) -> None:
    name = f"n{name}"  # no `.` or `..`, which names in an index are not either
    before = keys_of(s3_server, bucket)
    (tmp_path / "file").write_bytes(b"uploaded")
    try:
        storage = open_storage(f"{bucket}/{folder}", BRIEF)
        storage.write(name, b"written")
    except UserError:
        assert keys_of(s3_server, bucket) == before
        return
    key = f"{folder.removesuffix('/')}/{name}"
    assert keys_of(s3_server, bucket) - before <= {key}
    body = s3_server.client().get_object(Bucket=bucket.removeprefix("s3://"), Key=key)["Body"].read()
    assert body == b"written" == storage.read(name) and name in storage.names()
    storage.upload(tmp_path / "file", name)
    assert s3_server.client().get_object(Bucket=bucket.removeprefix("s3://"), Key=key)["Body"].read() == b"uploaded"
    storage.delete(name)
    assert keys_of(s3_server, bucket) == before


def test_a_set_under_an_odd_address_is_read(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    """As `data.sets.*.remote`; another set under the address that a parser of URLs would see is not touched."""
    for folder, content in (("set#1?a=b%20c;d", {"odd": 1}), ("set", {"other": 1})):
        for file in ("index.json", "dataset.json"):
            s3_server.client().put_object(
                Bucket=bucket.removeprefix("s3://"), Key=f"{folder}/{file}", Body=json.dumps(content).encode()
            )
    fetch_descriptions(DatasetConfig(path=str(tmp_path / "cache"), remote=f"{bucket}/set#1?a=b%20c;d"), BRIEF)
    assert json.loads((tmp_path / "cache" / "index.json").read_text()) == {"odd": 1}


@pytest.mark.parametrize("folder", ["/run", "run//", "a/../run", "run\t"])
def test_refused_before_anything_is_written(s3_server: S3Server, bucket: str, folder: str, tmp_path: Path) -> None:
    from tolktrain.config.load import load_prepare_config

    file = tmp_path / "prepare.yaml"
    file.write_text("name: n\ntext: {files: [a.jsonl]}\ntext_tokenizer: t\n")
    with pytest.raises(UserError, match="on the command line: output: 's3://"):
        load_prepare_config(file, [f'output="{bucket}/{folder}"'])
    assert keys_of(s3_server, bucket) == set()


@pytest.mark.slow
def test_a_set_is_prepared_and_inspected_under_an_odd_address(
    warm: Warm, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Every object is below the folder as it was written, each under its own key."""
    from tolktrain.data.text_tokenizer import train_tokenizer

    def tolktrain(*arguments: str) -> int:
        """In a process of its own: processes that an earlier test has started do not know this server."""
        process = warm.start("-m", "tolktrain", *arguments, folder=tmp_path)
        code = process.wait(300)
        print(process.output, process.errors)
        return code

    texts = [f"The {word} fox jumps over the lazy dog. " * 8 for word in ("quick", "slow", "brown", "red")]
    (tmp_path / "tok").mkdir()
    train_tokenizer(texts, 280).save(str(tmp_path / "tok" / "tokenizer.json"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"name": "n", "text": {"files": ["a.jsonl"]}, "text_tokenizer": "tok", "heldout": {"sources": 0.0}}
    (tmp_path / "prepare.yaml").write_text(json.dumps({**settings, "processes": 1}))
    folder = "run#3?versionId=1/ü %23;x"
    assert tolktrain("prepare", "prepare.yaml", f'output="{bucket}/{folder}"') == 0
    keys = keys_of(s3_server, bucket)
    assert all(key.startswith(f"{folder}/") for key in keys)
    names = {key.removeprefix(f"{folder}/") for key in keys}
    assert {"preparation.json", "summary.json", "train/index.json", "text_tokenizer/tokenizer.json"} <= names
    assert tolktrain("prepare", "--inspect", f"{bucket}/{folder}/train", "--output", "seen") == 0
    assert (tmp_path / "seen" / "statistics.json").exists()


def test_copies_of_checkpoints_under_an_odd_address(s3_server: S3Server, bucket: str) -> None:

    from tolktrain.runs.copies import storage_of

    config = Config.model_construct()
    object.__setattr__(config, "checkpoint", CheckpointConfig(upload=f"{bucket}/exp#1?a/"))
    object.__setattr__(config, "run", RunConfig(name="small"))
    storage = storage_of(config)
    assert storage is not None
    storage.write("step-00000001/manifest.json", b"{}")
    assert keys_of(s3_server, bucket) == {"exp#1?a/small/step-00000001/manifest.json"}
