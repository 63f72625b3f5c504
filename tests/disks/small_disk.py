"""File systems of a few KiB, which become full."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

MakeDisk = Callable[[int], "SmallDisk"]  # of so many KiB

_BALLAST = ".ballast"
_MNT_DETACH = 2


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path, kib: int) -> None:
        """Skips the test where none can be mounted."""
        libc = ctypes.CDLL(None, use_errno=True)
        path.mkdir()
        if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={kib}k".encode()):
            pytest.skip(f"a file system cannot be mounted: {os.strerror(ctypes.get_errno())}")
        self.path = path
        self._libc = libc

    def unmount(self) -> None:
        """Take it away, whoever still has files open there."""
        self._libc.umount2(os.fsencode(self.path), _MNT_DETACH)

    def fill(self, leaving_kib: int = 0) -> None:
        """Fill it but for so much."""
        with open(self.path / _BALLAST, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                file.truncate(max(0, file.tell() - 1024 * leaving_kib))

    def empty(self) -> None:
        """Take out what `fill` has written."""
        (self.path / _BALLAST).unlink()

    def files(self) -> dict[str, bytes]:
        """Content of each file on it."""
        paths = [path for path in self.path.rglob("*") if path.is_file() and path.name != _BALLAST]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in paths}

    def _open_files(self) -> list[str]:
        opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return [str(path) for path in opened if path.is_relative_to(self.path)]

    def refuses(self, write: Callable[[], object], message: str, leaving_kib: int = 0) -> None:
        """Prove that `write`, with so little room, raises an error that matches `message` (a regular expression) and
        leaves all files as they were, no other files and none open; with room it succeeds and changes something."""
        self.fill(leaving_kib)
        before = self.files()
        with pytest.raises((OSError, ValueError), match=f"(?s){message}") as caught:
            write()
        assert "No space left on device" in str(caught.value)
        assert self.files() == before
        del caught
        assert not self._open_files()
        self.empty()
        write()
        assert self.files() != before
