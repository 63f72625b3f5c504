"""Pickles of plain values, such as the descriptions of published sets."""

import errno
from pathlib import Path
from typing import Any, Final

from tolktrain.errors import UserError
from tolktrain.files.pickles import NameInPickleError, Standin, read_pickle
from tolktrain.files.reading import read_bytes

_LARGEST_BYTES: Final = 1 << 20
_LARGEST_VALUE: Final = 1 << 20  # values and characters, shared ones each time
_DEEPEST: Final = 100


def read_plain_pickle(path: str | Path) -> Any:
    """The value in a file: builtin containers, strings, numbers, and NumPy's numbers, which become Python's.

    Arrays come out as None. Nothing in the value is shared, so that its text is no longer than a few times the file's
    limit. Raises `UserError` if the file cannot be read, is damaged, names anything else, or unfolds to more; nothing
    that it names is imported or called.
    """
    try:
        return _Copier().copy(read_pickle(read_bytes(path, _LARGEST_BYTES)))
    except NameInPickleError as error:
        raise UserError(
            f"{path} asks for {error}, which a description does not need; nothing of it was run."
            " Take the file from its authors, or write one with plain numbers"
        ) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(f"{path} is too large; a description has at most {_LARGEST_BYTES} bytes") from None
        raise UserError(f"{path} cannot be read ({error.strerror}); the set needs it") from None
    except ValueError as error:
        raise UserError(f"{path} is no readable pickle ({error}); restore it from its source") from None


class _Copier:
    """Copies values up to a limit of all copies together."""

    def __init__(self) -> None:
        self._left = _LARGEST_VALUE

    def copy(self, value: Any, depth: int = 0) -> Any:
        """The value with None in the place of arrays. Raises ValueError beyond the limits, and for a class."""
        self._left -= 1 + (len(value) if isinstance(value, str | bytes | set | frozenset) else 0)
        if self._left < 0:
            raise ValueError(f"it unfolds to more than {_LARGEST_VALUE} values and characters")
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(value, dict):
            return {self.copy(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(item, depth + 1) for item in value)
        if isinstance(value, set | frozenset):
            # Its members are plain, and as many as they are now.
            return type(value)(self.copy(item) for item in value)
        if value is None or isinstance(value, Standin):
            return None
        if not isinstance(value, str | bytes | int | float):
            raise ValueError("it holds a class or a type")
        return value
