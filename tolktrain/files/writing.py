"""Files that are written whole or not at all, and failures of writing that say where.

A write that a full disk refuses raises `OSError` without the file's name, from `write`, `flush`, `fsync` or `close`.
Everything here raises it with the name, and leaves what was there before as it was.
"""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASIDE_PREFIX = ".tmp-"  # of files and folders that are not finished


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of the file system that names no file name `path`: the file, or the folder that is written into.

    Libraries in Rust (safetensors, tokenizers) raise kinds of their own; these become `OSError` too.
    """
    try:
        yield
    except Exception as error:
        code = _number(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _number(error: Exception) -> int | None:
    """The system's number of an error that names no file."""
    if isinstance(error, OSError):
        return error.errno if error.filename is None else None
    match = re.search(r"\(os error (\d+)\)$", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def written_aside(path: str | Path, prefix: str = ASIDE_PREFIX) -> Iterator[Path]:
    """A new path in the same folder, of the same suffix, whose file takes the place of `path` at the end of the block.

    When the block is left by an error, or the disk refuses anything, the new file is removed and `path` is as before.
    Several processes may do it at once.

    Raises:
        OSError: the disk refuses it; names `path`.
    """
    path = Path(path)
    aside = path.with_name(f"{prefix}{secrets.token_hex(8)}{path.suffix}")
    try:
        with naming(path):
            yield aside
            sync_path(aside)
            os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename == str(aside):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_path(path.parent)


def replace_file(path: str | Path, content: str | bytes, prefix: str = ASIDE_PREFIX) -> None:
    """Write a file, text as UTF-8, in place of the one that is there; raises as `written_aside`."""
    with written_aside(path, prefix) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it. For files in a folder that is itself written aside.

    Raises OSError naming the file.
    """
    with naming(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Wait until the disk has the file or folder at `path`; for a folder that means its entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AppendedFile:
    """A file that grows by whole pieces, such as lines. Only one process appends to it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be opened."""
        self.path = path
        # Without a buffer: what is left in one after a failure would be tried again at any later time.
        self._file = io.FileIO(path, "a")

    def append(self, piece: str | bytes) -> None:
        """Add all of a piece, or nothing of it.

        Raises:
            OSError: the disk refuses it; names the file.
        """
        content = memoryview(piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece)
        with naming(self.path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[self._file.write(content) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                raise

    def sync(self) -> None:
        """Wait until the disk has all of it. Raises OSError naming the file."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End it. Raises OSError naming the file, where a network file system refuses only now."""
        with naming(self.path):
            self._file.close()


def write_wav(path: Path, samples: Any, sample_rate: int) -> None:
    """Write mono sound, an array [n] of floats in [-1, 1], in 16 bit. Raises OSError naming the file."""
    import soundfile

    # In memory first: the library's own writing does not say that a disk is full.
    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate, format="WAV", subtype="PCM_16")
    write_synced(path, content.getvalue())
