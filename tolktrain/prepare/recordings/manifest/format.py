"""The interface of a manifest format, and what formats are recognized by."""

import glob
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tolktrain.files.reading import parse_json
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Utterance

_LINES = 20  # some of the first may be bad
# By these an object on a line shows what it is; which keys mean which format is the formats' own matter.
_TELLING_KEYS = ("supervisions", "recording_id", "sources", "audio")


@dataclass(frozen=True)
class Manifest:
    """A manifest: the input of a format's reader."""

    path: str
    root: str  # folder that relative audio paths start from
    audio_root: str | None  # the same as far as it is configured
    with_words: bool  # whether word times are wanted
    unused: Unused  # fields and files that a reader does not use are counted here


class Seen:
    """What a manifest looks like, read only as far as needed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_folder = os.path.isdir(path)
        self.is_file = os.path.isfile(path)

    @cached_property
    def names(self) -> list[str]:
        """Files of the folder; or those that the path is the common beginning of."""
        return os.listdir(self.path) if self.is_folder else glob.glob(glob.escape(self.path) + "*")

    @cached_property
    def lines(self) -> list[bytes]:
        """The first lines of a file that are not empty."""
        return [line for _, line in itertools.islice(read_lines(self.path), _LINES)] if self.is_file else []

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """JSON objects on these lines."""
        return [item for item in map(_object, self.lines) if item is not None]

    @cached_property
    def telling(self) -> dict[str, Any]:
        """The first object with a key that shows its format; empty if there is none."""
        return next((item for item in self.objects if any(key in item for key in _TELLING_KEYS)), {})

    def ends_with(self, *suffixes: str) -> bool:
        """Whether the path ends with one of some suffixes, compressed by gzip or not, in any case."""
        return self.path.lower().endswith(tuple(suffix + end for suffix in suffixes for end in ("", ".gz")))


@dataclass(frozen=True)
class Format:
    """The module of this package that has the format's name defines it as `FORMAT`."""

    read: Callable[[Manifest], Iterator[Utterance | Failure]]
    recognizes: Callable[[Seen], bool]
    is_folder: bool | None = False  # whether a manifest is a folder; None where it may be either, or no path at all


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        item = parse_json(text_of(line), unique_keys=False)  # what is wrong with it is said when it is read
    except (EntryError, ValueError):
        return None
    return item if isinstance(item, dict) else None
