"""Which addresses of buckets are taken, and that these are used exactly."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.files.address import parse_address, parse_source_address

AZURE = "azure://account.blob.core.windows.net/container"


@given(st.sampled_from(["s3://bucket", "gs://bucket", AZURE]), st.text(st.characters(), min_size=1))
@example("s3://bucket", "run#3")
@example("s3://bucket", "a?versionId=1&b")
@example("gs://bucket", "a%2Fb%")
@example("s3://bucket", "a//b")
@example("s3://bucket", "a b /ü;c=1")
@example(AZURE, "a.b/.c")
def test_a_folder_is_used_exactly_or_refused(place: str, folder: str) -> None:
    try:
        address = parse_address(f"{place}/{folder}")
    except UserError:
        parts = folder.split("/")
        odd = len(folder.encode("utf-8", "replace")) > 896 or any(not (c.isprintable() or c == " ") for c in folder)
        odd = odd or parts[0] == "" or folder.endswith("//") or {".", ".."} & set(parts)
        assert odd or (place == AZURE and ("\\" in folder or any(part.endswith(".") for part in parts)))
        return
    assert address.root == folder.removesuffix("/") + "/"
    assert address.path_of("index.json") == f"{place}/{address.root}index.json"
    assert address.bucket == ("container" if place == AZURE else "bucket")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket//run", "has a doubled slash at the beginning or end of its folder; write s3://bucket/run"),
        ("s3://bucket/run//", "; write s3://bucket/run"),
        ("gs://bucket/a/../run", r"has a folder named '.' or '..', which stores do not resolve; write gs://bucket/run"),
        ("s3://bucket/./run/", "; write s3://bucket/run"),
        (f"{AZURE}//run", f"; write {AZURE}/run"),
        (f"{AZURE}/v1./x", "with '.' at its end, which Azure changes; rename it"),
        (f"{AZURE}/a\\b", "Azure changes"),
        ("s3://bucket/run\n", "holds characters that cannot be printed; remove them"),
        ("s3://bucket/a\u202eb", "u202eb' holds characters that cannot be printed"),
        ("s3://bucket/a\x1b[2J", "holds characters that cannot be printed"),
        ("s3://bucket#3/run", "names the bucket or account 'bucket#3', but such names have only letters"),
        ("gs://bucket?x=1/run", "names the bucket or account 'bucket.x=1'"),
        ("s3://$BUCKET/run", r"names the bucket or account '\$BUCKET'.*Environment variables are not expanded"),
        ("azure://account#.blob.core.windows.net/container/x", "names the bucket or account 'account#.blob"),
        ("azure://account.blob.core.windows.net/con#tainer/x", "names the bucket or account 'con#tainer'"),
        ("azure://account.blob.core.windows.net", "needs an account and a container"),
        ("s3://user@bucket/run", "names the bucket or account 'user@bucket'"),
        ("s3://bucket/" + "a" * 897, "has a folder of 897 bytes, but keys have at most 1,024; use at most 896"),
        ("s3:/bucket/run", "is no address of a storage"),
        ("s3:bucket/run", "is no address of a storage"),
        ("hf://datasets/a/b", "is no address of a storage"),
    ],
)
def test_what_stores_or_clients_would_change_is_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_address(address)


@pytest.mark.parametrize("scheme", ["oci", "sftp", "dbfs", "alipan", "azure-dl"])
@pytest.mark.parametrize("character", "#?")
def test_what_the_library_would_cut_off_is_refused(scheme: str, character: str) -> None:
    with pytest.raises(UserError, match=f"at which the library that reads {scheme}: addresses ends the folder"):
        parse_source_address(f"{scheme}://host/set{character}1/train")
    assert parse_source_address(f"{scheme}://host/set;a=1%20b/train").scheme == scheme
    with pytest.raises(UserError, match="is no address"):
        parse_source_address(f"{scheme}://[host/train")


def test_an_address_of_the_hub_is_only_split_at_slashes() -> None:
    assert parse_source_address("hf://datasets/org/name/set#1?").text == "hf://datasets/org/name/set#1?"


@pytest.mark.parametrize(
    "address", ["s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:mine/run", "S3://my_bucket.x/run"]
)
def test_buckets_that_are_taken(address: str) -> None:
    assert parse_address(address).root == "run/"


@pytest.mark.parametrize("text", ["a:b/c", "/data/s3://x", "./a#b", "C:data", "x//"])
def test_folders_that_are_no_addresses(text: str) -> None:
    assert parse_address(text).scheme == ""
