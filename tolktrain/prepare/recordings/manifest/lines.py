"""The lines of manifests, compressed or not, and JSON on them."""

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import UTF_16_MARKS, RepeatedKeyError, bounded_lines, open_regular, parse_json
from tolktrain.prepare.utterances import EntryError, Reason

_GZIP = b"\x1f\x8b"
_UTF_8_MARK = b"\xef\xbb\xbf"
_LONGEST_LINE = 1 << 24  # bytes; the words of an hour take one


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Number, from 1 on, and bytes of each line that is not empty. Raises `UserError` if the file cannot be read."""
    number = 0
    try:
        with open_regular(path) as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
            for number, line in enumerate(bounded_lines(file, _LONGEST_LINE), 1):
                if number == 1:
                    if line.startswith(UTF_16_MARKS):
                        raise UserError(f"{path} is UTF-16 text; save it as UTF-8")
                    line = line.removeprefix(_UTF_8_MARK)
                line = line.rstrip(b"\r\n")
                if line:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check recordings.manifest") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} line {number + 1}: {error}; no utterance needs as much; check the file") from None


def text_of(line: bytes) -> str:
    """The line as text. Raises `EntryError` if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise EntryError(Reason.MANIFEST, f"the line is not UTF-8 ({error.reason} at byte {error.start})") from None


def json_of(line: bytes) -> Any:
    """The value on the line. Raises `EntryError` if it is not JSON, or has a key twice in one object."""
    try:
        return parse_json(text_of(line))
    except RepeatedKeyError as error:
        raise EntryError(Reason.MANIFEST, str(error)) from None
    except ValueError as error:
        raise EntryError(Reason.MANIFEST, f"the line is not JSON ({error})") from None
