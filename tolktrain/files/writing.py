"""Atomic writing of files, with errors that name the file.

On a full disk, `write`, `flush`, `fsync` or `close` raises `OSError` without the file's name. The functions here add
the name, and leave existing files unchanged.
"""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ASIDE_PREFIX = ".tmp-"  # of files and folders that are not finished


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add `path`, a file or a folder that is written to, to errors of the file system that name no file.

    Rust libraries (safetensors, tokenizers) raise their own types, which become `OSError` too.
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
    """A new path in the same folder, with the same suffix, whose file replaces `path` at the end of the block.

    If the block raises, or writing fails, the new file is removed and `path` is unchanged. Several processes may do
    this at once.

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
    """Write or replace a file atomically, text as UTF-8; raises like `written_aside`."""
    with written_aside(path, prefix) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and flush it to disk; for files in a folder that is itself renamed when complete.

    Raises OSError with the name of the file.
    """
    with naming(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Flush the file, or the entries of the folder, at `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AppendedFile:
    """A file to which pieces, such as lines, are appended atomically. Only one process appends to it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be opened."""
        self.path = path
        # Unbuffered: after a failure, the rest of a buffer would be written at an arbitrary later time.
        self._file = io.FileIO(path, "a")

    def append(self, piece: str | bytes) -> None:
        """Append a piece completely, or not at all.

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
        """Flush the file to disk. Raises OSError with the name of the file."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Raises OSError with its name, if a network file system reports a failure only now."""
        with naming(self.path):
            self._file.close()


def write_wav(path: Path, samples: Any, sample_rate: int) -> None:
    """Write mono audio, an array [n] of floats in [-1, 1], in 16 bit. Raises OSError with the name of the file."""
    write_wav_pieces(path, [samples], sample_rate)


def write_wav_pieces(path: Path, pieces: Iterable[Any], sample_rate: int) -> int:
    """Write mono audio that comes in pieces, arrays [n] of floats in [-1, 1], in 16 bit; returns the number of samples.

    Raises OSError with the name of the file.
    """
    # In memory first, because the library does not report a full disk.
    content, num_samples = wav_bytes(pieces, sample_rate)
    write_synced(path, content)
    return num_samples


def wav_bytes(pieces: Iterable[Any], sample_rate: int) -> tuple[bytes, int]:
    """A WAV file, in 16 bit, of mono audio that comes in pieces, arrays [n] of floats in [-1, 1]; and its samples."""
    import soundfile

    content, num_samples = io.BytesIO(), 0
    with soundfile.SoundFile(content, "w", sample_rate, 1, format="WAV", subtype="PCM_16") as file:
        for piece in pieces:
            file.write(piece)
            num_samples += len(piece)
    return content.getvalue(), num_samples
