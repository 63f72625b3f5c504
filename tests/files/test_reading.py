"""Content of files, in bounded time and memory."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tolktrain.files.reading import (
    DEEPEST,
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
        [sys.executable, "-c", program, str(_fifo(tmp_path))], capture_output=True, text=True, timeout=60
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
