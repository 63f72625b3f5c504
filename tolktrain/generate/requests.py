"""Prompts that are given on the command line or in a file of JSON lines."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from tolktrain.data.strategies.base import Modality
from tolktrain.errors import UserError
from tolktrain.files.names import check_stem
from tolktrain.files.reading import bounded_lines, open_regular, parse_json

Kind = Literal["text", "audio", "units"]
STANDARD_INPUT = "-"

_LONGEST_LINE = 1 << 22  # bytes
_MOST_UNITS = 1 << 31
_KEYS = ("text", "audio", "units", "to", "name", "ends_utterance")


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt, and the modality that follows it."""

    name: str  # of its files
    kind: Kind
    content: Any  # text, a path, or a list of units or of frames of units
    to: Modality
    ends_utterance: bool  # whether EOS follows the prompt
    source: str  # for messages


def request(kind: Kind, content: Any, to: Modality | None, ends_utterance: bool, name: str, source: str) -> Request:
    """A request; without a modality, the prompt is continued in its own one.

    Raises UserError when the prompt has the wrong type or is empty.
    """
    if kind in ("text", "audio") and not isinstance(content, str):
        raise UserError(f"{source}: {kind} is {content!r:.60}; expected {_EXPECTED[kind]}")
    if kind == "units":
        content = _units(content, source)
    if not content:
        raise UserError(f"{source}: {kind} is empty; expected {_EXPECTED[kind]}")
    if isinstance(content, str) and ("\0" in content or not _is_utf8(content)):
        raise UserError(f"{source}: {kind} is not UTF-8 or contains the character NUL; expected {_EXPECTED[kind]}")
    return Request(name, kind, content, to or ("text" if kind == "text" else "speech"), ends_utterance, source)


_EXPECTED: Mapping[Kind, str] = {
    "text": "some text",
    "audio": "the path of a WAV, FLAC or MP3 file",
    "units": "a list of units, or of lists with a unit of each codebook, such as [12, 7, 480]",
}


def read_requests(
    source: str, to: Modality | None, ends_utterance: bool, taken: Iterable[str] = ()
) -> Iterator[Request]:
    """The requests of a file of JSON lines, or of standard input for "-", one after the other as they are read.

    A line is an object with exactly one of `text`, `audio` (a path, relative to the file) and `units`; optional are
    `to` ("text" or "speech"), `name` (of the files that are written) and `ends_utterance`.

    Args:
        source: path, or "-".
        to: modality of the lines that name none.
        ends_utterance: of the lines that do not say it.
        taken: names of other requests.

    Raises:
        UserError: the file cannot be read, holds no prompt, or a line is something else; names the line.
    """
    shown = "standard input" if source == STANDARD_INPUT else source
    base = Path() if source == STANDARD_INPUT else Path(source).parent
    names, count = set(taken), 0
    for number, line in lines_of(source, shown):
        place = f"{shown}, line {number}"
        found = _parse(line, to, ends_utterance, f"line-{number}", place, base)
        if found.name in names:
            raise UserError(f"{place}: the name {found.name!r} was used before; give every prompt its own")
        names.add(found.name)
        count += 1
        yield found
    if not count:
        raise UserError(f'{shown} holds no prompt; expected lines such as {{"text": "Once"}}')


def lines_of(source: str, shown: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers, of a file or, for "-", of standard input as they are read.

    Raises UserError, with what is shown of the source, if it cannot be read or a line is too long.
    """
    try:
        opened: AbstractContextManager[BinaryIO]
        opened = nullcontext(sys.stdin.buffer) if source == STANDARD_INPUT else open_regular(source)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); expected a file of JSON lines") from None
    with opened as file:
        lines, number = bounded_lines(file, _LONGEST_LINE), 0
        while True:
            number += 1
            try:
                line = next(lines, None)
            except ValueError as error:
                raise UserError(f"{shown}, line {number}: {error}") from None
            if line is None:
                return
            if line.strip():
                yield number, line


def _parse(line: bytes, to: Modality | None, ends_utterance: bool, name: str, place: str, base: Path) -> Request:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise UserError(f'{place} is not JSON ({error}); expected an object such as {{"text": "Once"}}') from None
    kinds = [kind for kind in get_args(Kind) if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise UserError(f"{place}: expected an object with one of the keys text, audio and units")
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise UserError(f"{place}: the key {unknown[0]!r} is unknown; known are {', '.join(_KEYS)}")
    wanted = entry.get("to", to)
    if wanted not in (None, *get_args(Modality)):
        raise UserError(f"{place}: to is {wanted!r}; use text or speech")
    ends = entry.get("ends_utterance", ends_utterance)
    if not isinstance(ends, bool):
        raise UserError(f"{place}: ends_utterance is {ends!r}; use true or false")
    (kind,) = kinds
    chosen = check_stem(entry.get("name", name), place)
    found = request(kind, entry[kind], wanted, ends, chosen, place)
    if kind == "audio":
        return Request(found.name, kind, str(base / found.content), found.to, ends, place)
    return found


def _units(content: Any, source: str) -> list[list[int]]:
    """Frames of units; a bare unit is a frame of one codebook."""
    if not isinstance(content, list):
        raise UserError(f"{source}: units is {content!r:.60}; expected {_EXPECTED['units']}")
    frames = [frame if isinstance(frame, list) else [frame] for frame in content]
    for frame in frames:
        if any(isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < _MOST_UNITS for unit in frame):
            raise UserError(f"{source}: units holds {frame!r:.60}; expected {_EXPECTED['units']}")
        if len(frame) != len(frames[0]):
            raise UserError(f"{source}: units has frames of {len(frames[0])} and of {len(frame)} codebooks")
    return frames


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
