"""Files are written whole or not at all, and errors of a disk are reported with the file's name."""

import errno
import io
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_disk import MakeDisk
from tokenizers import Tokenizer, models

from tolktrain.files import writing
from tolktrain.files.writing import AppendedFile, naming, replace_file, write_synced, write_wav, written_aside


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 10 KiB: a refusal that needs no file system of its own, as of a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    mask = os.umask(0o027)
    try:
        for content in ("ä\n", b"\x00"):
            replace_file(path, content)
            assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    finally:
        os.umask(mask)
    assert os.listdir(tmp_path) == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_keeps_the_old_file(make_disk: MakeDisk) -> None:
    disk = make_disk(64)
    path = disk.path / "file"
    path.write_bytes(b"old" * 5000)
    disk.refuses(lambda: replace_file(path, b"n" * 20_000), rf"'{path}'", leaving_kib=8)
    assert path.read_bytes() == b"n" * 20_000


def test_a_limit_on_sizes_keeps_the_old_file(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")
    with pytest.raises(OSError, match=f"File too large: '{path}'"):
        replace_file(path, "n" * 20_000)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_a_refusal_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Network file systems tell of a quota, and disks of a broken block, only then."""
    path = tmp_path / "file"
    replace_file(path, "old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match=f"{os.strerror(code)}: '{path}'"):
        replace_file(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/none/file'"):
        replace_file(tmp_path / "none" / "file", "new")


def test_an_error_of_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "file") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with written_aside(path) as one, written_aside(path) as other:
        assert one != other and one.suffix == ".txt"
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["file.txt"]


def test_a_name_that_is_known_is_kept() -> None:
    for error in (OSError(errno.ENOSPC, "No space", "other"), OSError("no number"), ValueError("x")):
        with pytest.raises(type(error)) as caught, naming("path"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("library", ["safetensors", "tokenizers", "synced", "wav"])
def test_every_library_names_the_file(make_disk: MakeDisk, library: str) -> None:
    disk = make_disk(64)
    path = disk.path / "file"
    words = Tokenizer(models.WordLevel({str(number): number for number in range(20_000)}, "0"))

    def write() -> None:
        if library == "synced":
            write_synced(path, bytes(100_000))
        elif library == "wav":
            write_wav(path, np.zeros(100_000, np.float32), 16_000)
        else:
            with naming(path):
                words.save(str(path)) if library == "tokenizers" else save_file({"a": torch.ones(50_000)}, path)

    with pytest.raises(OSError) as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_sound_is_what_the_library_writes(tmp_path: Path) -> None:
    import soundfile

    samples = np.sin(np.arange(4000, dtype=np.float32) / 9)
    soundfile.write(tmp_path / "theirs.wav", samples, 16_000, subtype="PCM_16")
    write_wav(tmp_path / "ours.wav", samples, 16_000)
    assert (tmp_path / "ours.wav").read_bytes() == (tmp_path / "theirs.wav").read_bytes()


class TestAppendedFile:
    def test_whole_lines_or_none(self, make_disk: MakeDisk) -> None:
        disk = make_disk(64)
        path = disk.path / "lines"
        file = AppendedFile(path)
        file.append("first\n")
        disk.fill()  # what is left of the first line's block is free
        line = "x" * 4090 + "\n"
        for _ in range(3):
            with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
                file.append(line)
            assert path.read_text() == "first\n"
        disk.empty()
        file.append(line)
        file.sync()
        file.close()
        assert path.read_text() == f"first\n{line}"

    def test_a_limit_on_sizes(self, tmp_path: Path, small_files: None) -> None:
        file = AppendedFile(tmp_path / "lines")
        file.append("x" * 10_000 + "\n")
        with pytest.raises(OSError, match="File too large"):
            file.append("y" * 1000)
        file.close()
        assert (tmp_path / "lines").read_text() == "x" * 10_000 + "\n"

    def test_short_writes_are_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Short(io.FileIO):
            def write(self, content: object) -> int:
                return super().write(bytes(content)[:7])  # type: ignore[call-overload]

        monkeypatch.setattr(writing.io, "FileIO", Short)
        file = AppendedFile(tmp_path / "lines")
        file.append("a line that is longer\n")
        file.close()
        assert (tmp_path / "lines").read_text() == "a line that is longer\n"

    def test_sync_and_close_name_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Refusing(io.FileIO):
            def close(self) -> None:
                super().close()
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

        def refuse(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(writing.io, "FileIO", Refusing)
        monkeypatch.setattr(os, "fsync", refuse)
        file = AppendedFile(tmp_path / "lines")
        with pytest.raises(OSError, match="Input/output error: '.*/lines'"):
            file.sync()
        with pytest.raises(OSError, match="quota exceeded: '.*/lines'"):
            file.close()
