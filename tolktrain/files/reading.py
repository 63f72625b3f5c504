"""Reads untrusted files in bounded time and memory.

All failures are `OSError` or `ValueError`, as with `open` and `json.loads`, so that callers can add the file, its
purpose and the fix to the message.
"""

import codecs
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

DESCRIPTION_BYTES = 1 << 24  # the largest small file of JSON, YAML or notes that is read whole, unless said otherwise
TABLE_BYTES = 1 << 26  # the largest table that says which file holds which of many tensors or files
LONGEST_LINE = 1 << 26  # bytes of one line of a manifest or of documents
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_JSON_TOKEN = re.compile(r'(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:))|"(?:[^"\\]|\\.)*"|(?P<open>[{\[])|(?P<close>[}\]])')
DEEPEST = 100  # nested lists and objects, so that recursive callers need no limit


def open_regular(path: str | Path) -> BinaryIO:
    """The file opened for reading as bytes.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device or a folder, on which reading could block or never end.
    """
    # O_NONBLOCK: opening a FIFO without a writer would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_regular(path: str | Path) -> None:
    """Raise OSError like `open_regular`; for files that a library opens by name."""
    open_regular(path).close()


def read_bytes(path: str | Path, limit: int = DESCRIPTION_BYTES) -> bytes:
    """The whole content of a regular file.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `limit` bytes.
    """
    with open_regular(path) as file:
        # Allocates by the file's real size, not by the limit. The size alone is not enough: files of /proc have size 0,
        # and other files may grow.
        content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        while len(content) <= limit and (more := file.read(min(1 << 20, limit + 1 - len(content)))):
            content += more
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than the {limit} bytes that such a file may have", str(path))
    return content


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a regular file in hexadecimal; not held in memory. Raises OSError as `open_regular` does."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_text(path: str | Path, limit: int = DESCRIPTION_BYTES) -> str:
    """The same as UTF-8 text, without a byte order mark. Also raises ValueError if it is not UTF-8."""
    return read_bytes(path, limit).decode("utf-8-sig")


def decode_text(content: bytes) -> str:
    """Text that people or programs wrote, without a byte order mark.

    Raises:
        UnicodeError: it is not UTF-8. The message says what it is instead, and how to correct it.
    """
    if content.startswith(UTF_16_MARKS):
        raise UnicodeError("is UTF-16 text, not UTF-8; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnicodeError(f"is not UTF-8 text ({error.reason} in line {line}); save it as UTF-8") from None


def read_json(path: str | Path, limit: int = DESCRIPTION_BYTES) -> Any:
    """The value in a JSON file. Raises OSError as `read_bytes`, ValueError as `parse_json`."""
    return parse_json(read_bytes(path, limit))


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice. The message names the key and, in text of several lines, both lines."""


def parse_json(
    content: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None, unique_keys: bool = True
) -> Any:
    """`json.loads` for untrusted content.

    Raises:
        RepeatedKeyError: with `unique_keys`, an object has a key twice; otherwise, its last value is used.
        ValueError: it is not JSON, not UTF-8, or nested deeper than `DEEPEST`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        made = dict(pairs)
        if unique_keys and len(made) < len(pairs):
            raise RepeatedKeyError(_repeated_key(content))
        return made if object_hook is None else object_hook(made)

    try:
        value = json.loads(content, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _may_be_deep(content):
        _refuse_deep(value)
    return value


def is_count(value: object, limit: float = math.inf) -> TypeGuard[int]:
    """Whether a value from a file is an integer from 0 to below `limit`. True, an int in Python, is not."""
    return type(value) is int and 0 <= value < limit


def _repeated_key(content: str | bytes) -> str:
    """Says which key of JSON text is twice in one object; the text is valid up to the end of that object."""
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
    keys: list[dict[str, int]] = []  # of the objects and lists around a place: each key, and where it is
    for token in _JSON_TOKEN.finditer(text):
        if token["open"]:
            keys.append({})
        elif token["close"]:
            keys.pop()
        elif token["key"]:
            key = json.loads(token["key"])
            first = keys[-1].setdefault(key, token.start())
            if first != token.start():
                lines = [text.count("\n", 0, place) + 1 for place in (first, token.start())]
                where = f", in lines {lines[0]} and {lines[1]}" if "\n" in text.strip() else ""
                return f"the key {key!r:.80} is twice in one object{where}; leave one of them out"
    return "a key is twice in one object; leave one of them out"


def _may_be_deep(content: str | bytes) -> bool:
    if isinstance(content, str):
        return content.count("[") + content.count("{") > DEEPEST
    return content.count(b"[") + content.count(b"{") > DEEPEST


def _refuse_deep(value: Any) -> None:
    """Raise ValueError for a value that is nested so deeply that recursive code would exhaust the stack."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for node in level
            if isinstance(node, list | dict)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def bounded_lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """Lines of an open file, line ends included.

    Raises:
        ValueError: a line is longer than `longest` bytes; it is not read further.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise ValueError(f"a line is longer than {longest} bytes")
        yield line
