"""Validates names from files before they are used as paths."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.printable import printable

_LONGEST_NAME = 1024  # bytes of UTF-8; file systems take 255 for each component
_LONGEST_STEM = 200
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
_PLAIN = re.compile(rf"(?:{_PART}/){{0,3}}{_PART}")  # nothing that `_problem` would refuse, and what most names are
_HUB_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")


class NameRefusedError(UserError):
    """A name in a file that is not a path inside its folder."""


def inside(folder: str | Path, name: object, source: str | Path) -> Path:
    """`folder / name`, where `name` was read from an untrusted file.

    A folder in the cache of the Hugging Face hub, models--ORG--NAME/snapshots/REVISION, holds links to
    models--ORG--NAME/blobs; those are inside.

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
            target = joined.resolve()
            outside = not any(place in target.parents for place in _places(folder.resolve()))
        except (OSError, RuntimeError):  # links in a circle; RuntimeError up to Python 3.12
            problem = "leads through links without end"
        else:
            if not outside:
                return joined
            problem = f"leads outside of {printable(folder)}, or to it, through a link"
    raise _refusal(folder, name, source, problem)


def files_inside(folder: str | Path, table: Mapping[str, object], source: str | Path) -> dict[str, Path]:
    """`folder / name` for each name in a table of files. Raises like `inside`."""
    paths: dict[object, Path] = {}
    result = {}
    for key, name in table.items():
        if not isinstance(name, str) or name not in paths:
            path = inside(folder, name, source)
            paths[name] = path
        result[key] = paths[name]
    return result


def all_inside(folder: str | Path, names: Iterable[object], source: str | Path) -> None:
    """Raise like `inside` for the first invalid name.

    Suitable for a hundred thousand names: links are searched once per folder, not once per name.
    """
    links: dict[str, frozenset[str] | None] = {}
    for name in names:
        if isinstance(name, str) and _PLAIN.fullmatch(name):
            parent, _, last = name.rpartition("/")
            if parent not in links:
                links[parent] = _links_in(Path(folder), parent, source)
            there = links[parent]
            if there is not None and last not in there:
                continue
        inside(folder, name, source)


def check_name(name: object, source: str | Path) -> str:
    """The validated name, relative to a place without links, such as a bucket. Raises like `inside`."""
    problem = _problem(name)
    if problem is not None:
        raise _refusal("its folder", name, source, problem)
    assert isinstance(name, str)
    return name


def check_stem(name: object, source: str | Path) -> str:
    """The validated name after which files are named, with an ending of up to 55 bytes.

    Args:
        name: from an untrusted file.
        source: where the name is, for the message.

    Raises:
        NameRefusedError: the name is none that `inside` takes, has a slash, or is longer than 200 bytes.
    """
    problem = _problem(name)
    if problem is None:
        assert isinstance(name, str)
        if "/" not in name and len(name.encode()) <= _LONGEST_STEM:
            return name
        problem = "has a slash" if "/" in name else f"is longer than {_LONGEST_STEM} bytes"
    raise NameRefusedError(
        f"{printable(source)}: the name {_shown(name)} {problem}; files are named after it: give another one"
    )


def _links_in(folder: Path, name: str, source: str | Path) -> frozenset[str] | None:
    """Names of the links in a folder of that name; None if they cannot be read, or the folder itself is elsewhere."""
    try:
        with os.scandir(inside(folder, name, source) if name else folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (NameRefusedError, OSError):
        return None


def _places(folder: Path) -> list[Path]:
    """The folders in which the content of a folder may be, after links are followed."""
    hub = [
        place.parent / "blobs"
        for place in (folder, *folder.parents)
        if place.name == "snapshots" and _HUB_REPOSITORY.fullmatch(place.parent.name)
    ]
    return [folder, *hub]


def _problem(name: object) -> str | None:
    if not isinstance(name, str):
        return "is not text"
    if not name:
        return "is empty"
    if len(name) > _LONGEST_NAME or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
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


def _refusal(folder: str | Path, name: object, source: str | Path, problem: str) -> NameRefusedError:
    return NameRefusedError(
        f"{printable(source)} names the file {_shown(name)}, which {problem}; expected a file inside"
        f" {printable(folder)}. Nothing was read or changed; get {printable(source)} from its source again"
    )


def _shown(name: object) -> str:
    if not (name is None or isinstance(name, (str, int, float))):
        return f"(a {type(name).__name__})"  # its content may be arbitrarily large
    text = printable(repr(name))
    return text if len(text) <= 200 else f"{text[:200]}..."
