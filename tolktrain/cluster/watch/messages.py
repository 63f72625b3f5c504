"""The watchdog's messages. Every field of every message is validated before it is used.

All functions raise ValueError, naming the field, if a message is invalid.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tolktrain.cluster.watch.failures import Cause, Kind, RankState
from tolktrain.cluster.watch.wire import Message
from tolktrain.files.reading import is_count

NONCE_BYTES = 16
LONGEST_WORD = 1000  # characters of a field of a rank's state
LONGEST_TEXT = 100_000  # characters of an error with its stack; at most six bytes each in JSON, so it fits a message

_LARGEST_NUMBER = 1 << 62


def nonce_of(message: Message) -> str:
    """The hub's first line: {"nonce": ...}."""
    return str(_fields(message, {"nonce": _nonce})["nonce"])


def hello_of(message: Message, world_size: int) -> tuple[int, str]:
    """A rank's first line: its rank and nonce."""
    fields = _fields(message, {"rank": _number, "nonce": _nonce})
    if fields["rank"] >= world_size:
        raise ValueError(f"rank {fields['rank']} of {world_size}")
    return fields["rank"], fields["nonce"]


def state_of(content: object, rank: int) -> RankState:
    """The state that the rank `rank` reports."""
    state = RankState(**_fields(content, _STATE))
    if state.rank != rank:
        raise ValueError(f"rank {rank} sent the state of rank {state.rank}")
    return state


def failure_of(content: object, rank: int, now: float) -> Cause:
    """The failure that the rank `rank` reported at time `now`."""
    fields = _fields(content, {"kind": _kind, "text": text_of, "code": _code})
    return Cause(fields["kind"], rank, fields["text"], fields["code"], now)


def end_of(content: object) -> tuple[str, int]:
    """The hub's last line: why the job ends, and the exit code."""
    fields = _fields(content, {"text": text_of, "code": _code})
    return fields["text"], fields["code"]


def rank_of(content: object, world_size: int) -> int:
    """A rank of the job."""
    rank = _number(content)
    if rank >= world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    return rank


def text_of(content: object) -> str:
    """A text of any length."""
    if not isinstance(content, str):
        raise ValueError(f"a {type(content).__name__} where a text is expected")
    return content


def require_known(message: Message, known: frozenset[str]) -> None:
    """Refuse a message with unknown parts."""
    if not message.keys() <= known:
        raise ValueError(f"unknown parts {sorted(message.keys() - known)!r:.200}")


def shortened(text: str, longest: int = LONGEST_WORD) -> str:
    """The text, shortened to `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def _fields(content: object, readers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if not isinstance(content, dict) or content.keys() != readers.keys():
        raise ValueError(f"{content!r:.200} where {', '.join(readers)} are expected")
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read(content[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _nonce(content: object) -> str:
    if not isinstance(content, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}", content):
        raise ValueError("no nonce")
    return content


def _number(content: object) -> int:
    if not is_count(content, _LARGEST_NUMBER):
        raise ValueError(f"{content!r:.40} where a whole number is expected")
    return content


def _code(content: object) -> int:
    code = _number(content)
    if code > 255:
        raise ValueError(f"{code} is no exit code")
    return code


def _kind(content: object) -> Kind:
    return Kind(_number(content))


def _flag(content: object) -> bool:
    if not isinstance(content, bool):
        raise ValueError(f"a {type(content).__name__} where true or false is expected")
    return content


def _seconds(content: object) -> float:
    if type(content) not in (int, float) or not 0 <= content < math.inf:  # type: ignore[operator]
        raise ValueError(f"{content!r:.40} where seconds are expected")
    return float(content)  # type: ignore[arg-type]


def _position(content: object) -> tuple[int, int]:
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError("two numbers are expected")
    return _number(content[0]), _number(content[1])


_STATE = {
    "rank": _number,
    "host": text_of,
    "place": text_of,
    "at": text_of,
    "position": _position,
    "idle_seconds": _seconds,
    "line": text_of,
    "waiting": _flag,
    "hint": text_of,
    "finished": _flag,
}
