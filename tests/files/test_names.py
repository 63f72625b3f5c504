"""Names from files, used as paths: none leads out of its folder."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.files.names import NameRefusedError, all_inside, files_inside, inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links in it, and a file next to it that must not be reached."""
    root = tmp_path_factory.mktemp("names")
    (root / "secret").write_text("secret")
    folder = root / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "shard").write_text("content")
    (folder / "up").symlink_to(root)
    (folder / "away").symlink_to("/etc")
    (folder / "near").symlink_to(folder / "sub")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "dangling").symlink_to(root / "not-there")
    return folder


@pytest.mark.parametrize("name", ["shard", "sub/shard", "near/shard", "a-b_c.0.mds.zstd", "ütf-8 name", "...", "..a"])
def test_a_name_inside(folder: Path, name: str) -> None:
    assert inside(folder, name, "index.json") == folder / name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("../secret", "climbs"),
        ("sub/../../secret", "climbs"),
        ("..", "climbs"),
        ("up/secret", "through a link"),
        ("away/passwd", "through a link"),
        ("up", "through a link"),
        ("dangling", "through a link"),
        ("circle", "links"),
        ("", "empty"),
        (".", "empty component"),
        ("sub//shard", "empty component"),
        ("sub/", "empty component"),
        ("./shard", "empty component"),
        ("a\0b", "printed"),
        ("a\x1b[2Jb", "printed"),
        ("a\nb", "printed"),
        ("sub\\shard", "backslash"),
        ("\ud800", "printed"),
        ("x" * 256, "255"),
        ("x/" * 1000 + "x", "1024"),
        (None, "not text"),
        (7, "not text"),
        (b"shard", "not text"),
        (["shard"], "not text"),
    ],
)
def test_a_name_that_is_refused(folder: Path, name: object, why: str) -> None:
    with pytest.raises(NameRefusedError, match=why) as raised:
        inside(folder, name, "the/index.json")
    assert isinstance(raised.value, UserError)
    message = str(raised.value)
    assert "the/index.json" in message and message.isprintable() and len(message) < 700


_PARTS = st.sampled_from(
    ["..", ".", "", "sub", "up", "set", "away", "near", "secret", "etc", "shard", "\0", "~", "\\", "x"]
)


@given(st.lists(_PARTS | st.text(max_size=3), min_size=1, max_size=6).map("/".join))
@example("//etc/passwd")
@example("near/../../secret")
def test_whatever_is_accepted_lies_inside(folder: Path, name: str) -> None:
    try:
        path = inside(folder, name, "index.json")
    except NameRefusedError:
        return
    assert os.path.commonpath([os.path.realpath(path), os.path.realpath(folder)]) == os.path.realpath(folder)
    assert os.path.realpath(path) != os.path.realpath(folder)


def test_a_folder_that_is_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "sub/shard", "index.json") == tmp_path / "link" / "sub" / "shard"


def test_many_names_are_refused_as_each_of_them(folder: Path) -> None:
    good = ["shard", "sub/shard", "near/shard", "not there", "not/there", "sub/shard/beyond"]
    all_inside(folder, good, "index.json")
    for bad in ["up/secret", "away/passwd", "up", "dangling", "dangling/x", "circle", "../secret", "", None, ["shard"]]:
        with pytest.raises(NameRefusedError) as one:
            inside(folder, bad, "index.json")
        with pytest.raises(NameRefusedError) as many:
            all_inside(folder, [*good, bad, *good], "index.json")
        assert str(many.value) == str(one.value)


@given(st.lists(st.lists(_PARTS | st.text(max_size=3), min_size=1, max_size=6).map("/".join), max_size=4))
def test_many_names_and_each_of_them_are_judged_alike(folder: Path, names: list[str]) -> None:
    def accepted(check: Callable[[], object]) -> bool:
        try:
            check()
        except NameRefusedError:
            return False
        return True

    alone = all(accepted(partial(inside, folder, name, "index.json")) for name in names)
    assert accepted(partial(all_inside, folder, names, "index.json")) == alone
    table = dict(enumerate(names))
    assert accepted(partial(files_inside, folder, table, "index.json")) == alone


def test_a_hundred_thousand_names_ask_for_each_folder_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    scandir, resolve = os.scandir, Path.resolve
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: asked.append(self) or resolve(self, strict))
    all_inside(folder, (f"{place}shard.{i:06d}.mds" for i in range(50_000) for place in ("", "sub/")), "index.json")
    assert len(asked) < 10


def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Its snapshots are links to files elsewhere in it; not to anything else."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "c0ffee"
    for place in (repository / "blobs", repository / "refs", snapshot / "sub"):
        place.mkdir(parents=True)
    (repository / "blobs" / "0123").write_text("weights")
    (repository / "refs" / "main").write_text("c0ffee")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    (snapshot / "sub" / "model.safetensors").symlink_to("../../../blobs/0123")
    (snapshot / "leak").symlink_to(tmp_path / "secret")
    (snapshot / "refs").symlink_to("../../refs")
    for name in ("model.safetensors", "sub/model.safetensors"):
        assert inside(snapshot, name, "index.json").read_text() == "weights"
        all_inside(snapshot, [name], "index.json")
        assert inside(snapshot / "sub", "model.safetensors", "index.json").read_text() == "weights"
    for name in ("leak", "refs/main", "../../blobs/0123"):
        with pytest.raises(NameRefusedError):
            inside(snapshot, name, "index.json")
    # What only looks like it has no such right.
    other = tmp_path / "snapshots" / "c0ffee"
    other.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_text("weights")
    (other / "model.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(NameRefusedError):
        inside(other, "model.safetensors", "index.json")
