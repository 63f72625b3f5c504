"""Paths as users give them, in configurations and on the command line."""

import argparse
import os
import re
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.address import has_scheme, parse_address, parse_source_address
from tolktrain.files.printable import printable

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\}|\([^)]*\))")  # $NAME, ${NAME} and $(command)


def given_path(text: str, *, is_input: bool = False, may_be_address: bool = False) -> str:
    """The path with `~` expanded. Addresses of buckets, if they are allowed, are checked and returned unchanged.

    Args:
        text: as given; for an input it may be a pattern.
        is_input: the path is read; then `$` is an ordinary character of names that exist.
        may_be_address: the path may be the address of a bucket.

    Raises:
        UserError: an environment variable was not expanded, there is no such user, or the path is an address and must
            not be one or is invalid.
    """
    variable = _VARIABLE.search(text)
    if variable is not None and not (is_input and _exists_to(text, variable.end())):
        raise UserError(_not_expanded(text, variable[0]))
    if may_be_address:
        if (parse_source_address if is_input else parse_address)(text).scheme:
            return text
    elif has_scheme(text) and not (is_input and _exists_to(text, 0)):
        raise UserError(
            f"{text!r} is an address, but only local paths can be used here; write a path (data in a bucket"
            " is read by data.sets.NAME.remote, and written by checkpoint.upload and the output of tolktrain prepare)"
        )
    path = os.path.expanduser(text)
    if path.startswith("~") and not (is_input and _exists_to(path, 0)):
        raise UserError(
            f"{text!r} begins with {printable(path.partition('/')[0])}, but there is no such user; write the"
            f" whole path, or './{printable(text)}' for a folder of that name"
        )
    return path


def path_argument(text: str) -> Path:
    """An output path, for `type` of argparse."""
    return Path(_argument(text, is_input=False))


def input_argument(text: str) -> str:
    """An input path or address, for `type` of argparse."""
    return _argument(text, is_input=True)


def _argument(text: str, is_input: bool) -> str:
    try:
        return given_path(text, is_input=is_input, may_be_address=is_input)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _exists_to(text: str, end: int) -> bool:
    """Whether the path exists up to the end of the component that contains position `end`."""
    slash = text.find("/", end)
    return os.path.lexists(text if slash < 0 else text[:slash])


def _not_expanded(text: str, variable: str) -> str:
    expanded = os.path.expandvars(text)
    example = f", such as {expanded!r}" if not _VARIABLE.search(expanded) else ""
    return (
        f"{text!r} contains {printable(variable)}, and environment variables are expanded by the shell only;"
        f" write the path itself{example}, or give it on the command line without single quotes"
    )
