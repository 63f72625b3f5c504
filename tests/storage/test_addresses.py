"""Odd addresses on a server: the objects get exactly the keys that the addresses say, or nothing is written."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3_server import S3Server

from tolktrain.config.data import DatasetConfig
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
