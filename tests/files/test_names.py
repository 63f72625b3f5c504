"""Names from files, used as paths: none leads out of its folder."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tolktrain.config.errors import UserError
from tolktrain.files.names import NameRefusedError, inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links in it, and a file beside it that must not be reached."""
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


_PARTS = st.sampled_from(["..", ".", "", "sub", "up", "away", "near", "secret", "etc", "shard", "\0", "~", "\\", "x"])


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
