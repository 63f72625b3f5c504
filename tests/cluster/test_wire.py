"""Lines of JSON over a socket: what is not one is refused, in bounded memory and time, and none can be forged."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.cluster.watch import messages, wire
from tolktrain.cluster.watch.failures import RankState
from tolktrain.cluster.watch.wire import GREETING_BYTES, MESSAGE_BYTES, Seal, Wire, WireError

KEYS = b"from here to there", b"from there to here"


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the bare other end of its connection."""
    near, far = socket.socketpair()
    with near, far:
        # A pair has no TCP_NODELAY.
        yield Wire(_Pair(near.family, near.type, near.proto, near.detach())), far


class _Pair(socket.socket):
    def setsockopt(self, *arguments: Any) -> None:
        """Nothing to set."""


def heard(end: Wire) -> list[Any]:
    """All that has arrived."""
    found = []
    while end.wait(0.05):
        found += list(end.receive())
    return found


def test_messages_arrive_whole_however_they_are_cut(ends: tuple[Wire, socket.socket]) -> None:
    end, other = ends
    sent = [{"a": 1}, {"b": "\n\u2028ü"}, {}]
    found = []
    for byte in b"".join(json.dumps(message).encode() + b"\n" for message in sent):
        other.sendall(bytes([byte]))
        found += list(end.receive())
    assert found == sent


GARBAGE = [
    b"1",
    b"null",
    b"[1]",
    b'"GET"',
    b"true",
    b"NaN",
    b"",
    b"{",
    b'{"a":}',
    b"[" * 4000,
    b'{"a":' * 700,
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"9" * 4000,
    b"-" + b"1" * 4090,
    b"GET / HTTP/1.1\r",
    b"SSH-2.0-OpenSSH_9.6\r",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"*1\r",
]


@pytest.mark.parametrize("line", GARBAGE)
def test_what_is_no_message(ends: tuple[Wire, socket.socket], line: bytes) -> None:
    end, other = ends
    other.sendall(line + b"\n")
    with pytest.raises(WireError, match="."):
        heard(end)


def test_deep_nesting_of_one_who_has_proved(ends: tuple[Wire, socket.socket]) -> None:
    end, other = ends
    end.seal(*KEYS)
    seal = Seal(KEYS[1])
    other.sendall(seal.close(b"{}") + b"\n" + seal.close(b"[" * 60_000) + b"\n")
    assert next(end.receive()) == {}
    with pytest.raises(WireError, match="nested too deeply"):
        heard(end)


def fed(end: Wire, other: socket.socket, content: bytes, piece: int) -> int:
    """Send in pieces until it is refused; returns how much was taken."""
    for begin in range(0, len(content), piece):
        other.sendall(content[begin : begin + piece])
        try:
            list(end.receive())
        except WireError:
            return begin + piece
    return len(content)


def test_a_stranger_gets_four_kilobytes(ends: tuple[Wire, socket.socket]) -> None:
    assert GREETING_BYTES < fed(*ends, b"x" * 100_000, 512) <= GREETING_BYTES + 512


def test_nor_more_in_short_lines(ends: tuple[Wire, socket.socket]) -> None:
    assert GREETING_BYTES < fed(*ends, b"{}\n" * 10_000, 512) <= GREETING_BYTES + 512


class Searched(bytearray):
    """Counts how many bytes are searched for the end of a line."""

    number = 0

    def find(self, *arguments: Any) -> int:  # type: ignore[override]
        """Of bytearray."""
        type(self).number += len(self) - (arguments[1] if len(arguments) > 1 else 0)
        return super().find(*arguments)


def test_a_rank_gets_a_megabyte_a_message_and_each_byte_is_searched_once(ends: tuple[Wire, socket.socket]) -> None:
    end, other = ends
    end.seal(*KEYS)
    other.sendall(Seal(KEYS[1]).close(b"{}") + b"\n")
    assert heard(end) == [{}]
    end._in = Searched()
    Searched.number = 0
    assert MESSAGE_BYTES < fed(end, other, b"x" * (2 * MESSAGE_BYTES), 1000) <= MESSAGE_BYTES + 1000
    assert Searched.number <= 2 * (MESSAGE_BYTES + 1000)


def test_sending_never_waits_and_never_piles_up_without_bound(ends: tuple[Wire, socket.socket]) -> None:
    end, other = ends
    sent = 0
    while end.send({"text": "x" * 100_000}):
        sent += 1
        assert sent < 100, "it keeps everything"
    assert end.unsent <= MESSAGE_BYTES + 200_000
    other.setblocking(False)
    got = 0
    while end.unsent:
        got += len(other.recv(1 << 20))
        end.flush()
    while True:
        try:
            got += len(other.recv(1 << 20))
        except BlockingIOError:
            break
    assert got == sent * (len(json.dumps({"text": ""})) + 100_000 + 1), "each one that was taken arrives whole"


def test_who_has_gone(ends: tuple[Wire, socket.socket]) -> None:
    end, other = ends
    other.close()
    with pytest.raises(WireError, match="^$"):
        heard(end)
    assert not end.send({"a": "x" * 1000})


def opened(lines: list[bytes], key: bytes = b"k") -> list[bytes]:
    seal = Seal(key)
    return [seal.open(line) for line in lines]


def test_a_sealed_line_cannot_be_forged_changed_repeated_left_out_or_sent_back() -> None:
    seal = Seal(b"k")
    first, second = seal.close(b"{}"), seal.close(b'{"end": 1}')
    assert opened([first, second]) == [b"{}", b'{"end": 1}']
    flipped = second[:-1] + bytes([second[-1] ^ 1])
    for lines in ([second], [first, first], [first, flipped], [first, second[64:]], [first, b"0" * 64 + second[64:]]):
        with pytest.raises(WireError, match="without a valid proof"):
            opened(lines)
    with pytest.raises(WireError):
        opened([first], b"l")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
GOOD_STATE: dict[str, Any] = {
    "rank": 1,
    "host": "n",
    "place": "",
    "at": "x",
    "position": [1, 2],
    "idle_seconds": 0.5,
    "line": "",
    "waiting": False,
    "finished": True,
    "hint": "",
}
GOOD_FAILURE: dict[str, Any] = {"kind": 1, "text": "x", "code": 2}
GOOD_END: dict[str, Any] = {"text": "x", "code": 2}
GOOD_HELLO: dict[str, Any] = {"rank": 1, "nonce": "0" * 32}
READERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "state": (lambda content: messages.state_of(content, 1), GOOD_STATE),
    "failure": (lambda content: messages.failure_of(content, 1, 0.0), GOOD_FAILURE),
    "end": (messages.end_of, GOOD_END),
    "hello": (lambda content: messages.hello_of(content, 4), GOOD_HELLO),
    "nonce": (messages.nonce_of, {"nonce": "0" * 32}),
}
BAD: list[Any] = [
    *(None, True, -1, 1.5, "1", "", [], {}, [1], [1, 2, 3], [1, "2"], [True, 0], {"a": 1}, 10**30, 1 << 70),
    *(float("nan"), float("inf"), -0.5, "\ud800", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n", 4, 256, 3),
]


def test_good_messages_are_taken() -> None:
    for read, good in READERS.values():
        read(good)
    assert messages.state_of(GOOD_STATE, 1) == RankState(1, "n", "", "x", (1, 2), 0.5, "", False, True)


@pytest.mark.parametrize("name", READERS)
def test_every_field_of_every_message_is_checked(name: str) -> None:
    """For each field some values of each other type are refused, and whatever is taken has the right type."""
    read, good = READERS[name]
    for field, right in good.items():
        refused = 0
        for bad in BAD:
            content = {**good, field: bad}
            try:
                read(content)
            except ValueError:
                refused += 1
            else:
                numbers = (int, float) if field == "idle_seconds" else (type(right),)
                assert type(bad) in numbers, (field, bad)
        assert refused >= 15, field
        with pytest.raises(ValueError):
            read({key: value for key, value in good.items() if key != field})
    with pytest.raises(ValueError):
        read({**good, "more": 1})


@given(json_values, st.sampled_from(sorted(READERS)))
def test_no_content_does_more_than_be_refused(content: Any, name: str) -> None:
    with pytest.raises(ValueError):
        READERS[name][0](content)


@given(st.sampled_from(sorted(READERS)), st.data())
def test_nor_does_a_message_with_one_field_of_any_kind(name: str, data: st.DataObject) -> None:
    read, good = READERS[name]
    field = data.draw(st.sampled_from(sorted(good)))
    with contextlib.suppress(ValueError):
        read({**good, field: data.draw(json_values)})


def test_what_a_rank_says_about_itself_fits_into_a_message() -> None:
    assert messages.shortened("x" * 1000) == "x" * 1000
    assert messages.shortened("x" * 1001) == "x" * 996 + " ..."
    longest = json.dumps(
        {"failure": {**GOOD_FAILURE, "text": messages.shortened("ü" * 200_000, messages.LONGEST_TEXT)}}
    )
    assert len(longest) < wire.MESSAGE_BYTES
