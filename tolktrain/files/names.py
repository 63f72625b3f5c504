"""Names that stand in files, used as paths."""

import os
from pathlib import Path

from tolktrain.config.errors import UserError
from tolktrain.files.printable import printable

_LONGEST_NAME = 1024  # bytes of UTF-8; file systems take 255 for each component


class NameRefusedError(UserError):
    """A name in a file that is no path inside the folder it belongs to."""


def inside(folder: str | Path, name: object, source: str | Path) -> Path:
    """`folder / name`, where `name` was read from a file that somebody else may have written.

    Args:
        folder: what the name is relative to; itself trusted, links included.
        name: from the file: a relative path with "/" between its components.
        source: the file that holds the name, for the message.

    Raises:
        NameRefusedError: the name is no text, empty, absolute, holds ".", ".." or an empty component, a backslash or
            characters that cannot be printed, is longer than a path may be, or leads outside through a link.
    """
    folder = Path(folder)
    problem = _problem(name)
    if problem is None:
        assert isinstance(name, str)
        joined = folder / name
        try:
            outside = not joined.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError):  # links in a circle; RuntimeError up to Python 3.12
            problem = "leads through links without end"
        else:
            if not outside:
                return joined
            problem = f"leads outside of {printable(folder)} through a link"
    raise NameRefusedError(
        f"{printable(source)} names the file {_shown(name)}, which {problem}; expected is a file inside"
        f" {printable(folder)}: nothing was read or changed there. Get {printable(source)} from its source again"
    )


def _problem(name: object) -> str | None:
    if not isinstance(name, str):
        return "is not text"
    if not name:
        return "is empty"
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    if printable(name) != name or "\\" in name or "\n" in name or "\t" in name:
        return "holds a backslash or characters that cannot be printed"
    if os.path.isabs(name):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return 'climbs by ".."'
    if "" in parts or "." in parts:
        return "has an empty component"
    if any(len(part.encode()) > 255 for part in parts):
        return "has a component longer than 255 bytes"
    return None


def _shown(name: object) -> str:
    text = printable(repr(name))
    return text if len(text) <= 200 else f"{text[:200]}..."
