"""Content of files, in bounded time and memory."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.files.reading import (
    DEEPEST,
    RepeatedKeyError,
    bounded_lines,
    file_sha256,
    is_count,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    # In a process of its own: what hangs in open() cannot be ended from within.
    program = "import sys; from tolktrain.files.reading import read_bytes; read_bytes(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(_fifo(tmp_path))], capture_output=True, text=True, timeout=300
    )
    assert "not a regular file" in done.stderr


@pytest.mark.parametrize("path", ["/dev/zero", "/dev", "/proc/self/fd"])
def test_only_regular_files(path: str) -> None:
    with pytest.raises(OSError, match="regular file"):
        read_bytes(path)


def test_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="regular file"):
        open_regular(tmp_path / "link")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fifo = _fifo(tmp_path)
    for _ in range(5):
        with pytest.raises(OSError, match="regular file"):
            open_regular(fifo)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limit_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_bytes(path, 4)
    # Its size is said to be 0.
    assert read_bytes("/proc/self/status").startswith(b"Name:")


def test_text_and_json(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_text(path) == '{"a": [1]}'
    path.write_bytes(b'{"a": [1]}')
    assert read_json(path) == {"a": [1]}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, b"[" * 100_000, "[1", "", b"\xff"])
def test_json_that_is_none(content: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(content)


@pytest.mark.parametrize("opened, closed", [("[", "]"), ('{"a":', "}"), ('[[0],{"a":', "}]")])
def test_whoever_walks_json_has_stack_left(opened: str, closed: str) -> None:
    """What the parser takes may be deeper than what its caller can write out again, a few calls further up."""
    per_step = opened.count("[") + opened.count("{") - opened.count("]")
    steps = DEEPEST // per_step
    fitting = opened * steps + "1" + closed * steps
    assert json.loads(fitting) == parse_json(fitting) == parse_json(fitting.encode())
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(opened * (steps + 1) + "1" + closed * (steps + 1))
    assert parse_json("[" + "[]," * 1000 + "1]")[-1] == 1  # many are not deep


def test_lines_have_a_longest() -> None:
    assert list(bounded_lines(io.BytesIO(b"ab\ncd"), 3)) == [b"ab\n", b"cd"]
    lines = bounded_lines(io.BytesIO(b"ab\n" + b"x" * 100), 3)
    assert next(lines) == b"ab\n"
    with pytest.raises(ValueError, match="longer than 3 bytes"):
        next(lines)


def test_a_digest_is_that_of_the_whole_content(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="regular file"):
        file_sha256("/dev/zero")


def test_counts_are_whole_numbers() -> None:
    assert [value for value in (0, 1, 9, 10**30) if not is_count(value)] == []
    assert [value for value in (-1, True, False, 1.0, "1", None, [1], float("nan")) if is_count(value)] == []
    assert is_count(9, 10) and not is_count(10, 10)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | WORDS | st.sampled_from(['"a": 1', "{", "[]", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from([None, 1]))
def test_json_without_repeated_keys_is_that_of_the_library(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@settings(max_examples=100, deadline=None)
@given(VALUES, WORDS, VALUES, VALUES, st.lists(VALUES, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_a_key_that_is_twice_in_an_object_is_refused(
    before: object, key: str, first: object, second: object, after: list[object], encoded: bool, indent: int | None
) -> None:
    """At any depth, however it is written; the message has the key and the lines."""
    mark, other_mark = "first-mark-7f1d", "second-mark-7f1d"
    tree = [before, {"outer": {mark: first, "between": {key: key, "more": [{key: 1}]}, other_mark: second}}, *after]
    text = json.dumps(tree, indent=indent)
    lines = [1 + text[: text.index(name)].count("\n") for name in (mark, other_mark)]
    escaped = json.dumps(key) if encoded else '"' + "".join(f"\\u{ord(c):04x}" for c in key if ord(c) < 1 << 16) + '"'
    key = json.loads(escaped)
    text = text.replace(json.dumps(mark), json.dumps(key)).replace(json.dumps(other_mark), escaped)
    with pytest.raises(RepeatedKeyError) as caught:
        parse_json(text.encode() if encoded else text)
    where = f", in lines {lines[0]} and {lines[1]}" if indent else ""
    if key not in ("between",):
        assert str(caught.value) == f"the key {key!r:.80} is twice in one object{where}; leave one of them out"
