"""Files of dialogues, in ranges of lines that processes read one at a time."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.lines import read_lines


@dataclass(frozen=True)
class LineRange:
    """Lines `first` to `last` of a file."""

    path: str = field(compare=False)
    name: str  # of the file, in ids
    first: int
    last: int
    sha256: str  # of the lines

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for number, line in read_lines(self.path):
            if number > self.last:
                return
            if number >= self.first:
                yield number, line


def find_files(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of all files that match, each once, in the order of their paths. Raises `UserError`."""
    paths: set[str] = set()
    for pattern in patterns:
        matches = {os.path.abspath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
        if not matches:
            raise UserError(f"dialogue.files: no file matches {pattern!r}; patterns count from {os.getcwd()}")
        paths |= matches
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = {path: os.path.relpath(path, common).encode("utf-8", "backslashreplace").decode() for path in paths}
    return [(path, names[path]) for path in sorted(paths)]


def ranges_of(path: str, name: str, num_lines: int) -> Iterator[tuple[LineRange, int]]:
    """A file in ranges of at most so many lines, and the number of lines of each."""
    digest, first, last, count = hashlib.sha256(), 0, 0, 0
    for number, line in read_lines(path):
        first = first or number
        last, count = number, count + 1
        digest.update(line + b"\n")
        if count == num_lines:
            yield LineRange(path, name, first, last, digest.hexdigest()), count
            digest, first, count = hashlib.sha256(), 0, 0
    if count:
        yield LineRange(path, name, first, last, digest.hexdigest()), count
