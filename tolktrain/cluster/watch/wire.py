"""Lines of JSON over a socket; each line is authenticated once both sides know the keys.

Anybody who can reach the port may send anything. Nothing here blocks on the other side, and the memory and computation
that a peer can cause are bounded: by `GREETING_BYTES` until it is authenticated, then by `MESSAGE_BYTES` a message.
"""

import hmac
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from tolktrain.files.reading import parse_json

Message = dict[str, Any]

GREETING_BYTES = 1 << 12
MESSAGE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_DIGEST = "sha256"
_PROOF_BYTES = 64  # in hexadecimal


class WireError(Exception):
    """The connection cannot be used any more. The text says what was wrong; empty if the other side closed it."""


class Seal:
    """Authentication of one direction of a connection. Each line has a proof over its content and number, so that no
    line can be forged, changed, repeated, omitted or reflected."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def close(self, content: bytes) -> bytes:
        """The line that carries the next content."""
        return self._proof(content) + content

    def open(self, line: bytes) -> bytes:
        """The content of the next line. Raises WireError if its sender does not have the key."""
        proof, content = line[:_PROOF_BYTES], line[_PROOF_BYTES:]
        if not hmac.compare_digest(proof, self._proof(content)):
            raise WireError("a line without a valid proof")
        return content

    def _proof(self, content: bytes) -> bytes:
        self._count += 1
        return hmac.digest(self._key, self._count.to_bytes(8, "big") + content, _DIGEST).hex().encode()


class Wire:
    """One side of a connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._sending = threading.Lock()
        self._out = bytearray()
        self._outgoing: Seal | None = None
        self._incoming: Seal | None = None
        self._in = bytearray()
        self._searched = 0  # bytes of `_in` without a line end
        self._taken = 0
        self.is_proved = False  # whether the other side has sent a line with a valid proof

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def seal(self, outgoing: bytes, incoming: bytes) -> None:
        """Authenticate all lines from the next one on, with the keys of both directions."""
        self._outgoing, self._incoming = Seal(outgoing), Seal(incoming)

    @property
    def unsent(self) -> int:
        """Bytes that wait until the other side reads."""
        return len(self._out)

    def send(self, message: Message) -> bool:
        """Send, and keep the rest for `flush` if the other side does not read. False if it is closed or never reads."""
        with self._sending:
            if len(self._out) > MESSAGE_BYTES:
                return False
            content = json.dumps(message).encode()
            self._out += (self._outgoing.close(content) if self._outgoing else content) + b"\n"
            return self._flush()

    def flush(self, seconds: float = 0.0) -> bool:
        """Send what was kept, and wait for the other side up to `seconds`. False if the connection is closed."""
        deadline = time.monotonic() + seconds
        while True:
            with self._sending:
                if not self._flush():
                    return False
            left = deadline - time.monotonic()
            if not self._out or left <= 0:
                return True
            self._poll(select.POLLOUT, left)

    def receive(self) -> Iterator[Message]:
        """Complete messages that have arrived, each validated when it is iterated over. Does not block.

        Raises:
            WireError: the other side has closed the connection, or has sent something that is not a message.
        """
        yield from self._lines()
        self._read()
        yield from self._lines()
        if not self.is_proved and self._taken > GREETING_BYTES:
            raise WireError(f"more than {GREETING_BYTES} bytes without a proof")
        if len(self._in) > MESSAGE_BYTES:
            raise WireError(f"a line longer than {MESSAGE_BYTES} bytes")

    def wait(self, seconds: float) -> bool:
        """Whether something arrives within `seconds`. Meanwhile, sends what was kept."""
        if len(self._in) > self._searched:
            return True
        wanted = select.POLLIN | (select.POLLOUT if self._out else 0)
        found = self._poll(wanted, seconds)
        if found & select.POLLOUT:
            self.flush()
        return bool(found & ~select.POLLOUT)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _flush(self) -> bool:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES if self.is_proved else GREETING_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise WireError("")
        self._in += data
        self._taken += len(data)

    def _lines(self) -> Iterator[Message]:
        """Messages of what has been read. Searches each byte once, and parses a line only after the one before was
        processed, because that one may set the keys."""
        while (end := self._in.find(b"\n", self._searched)) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._searched = 0
            yield self._parsed(line)
        self._searched = len(self._in)

    def _parsed(self, line: bytes) -> Message:
        if self._incoming is not None:
            line = self._incoming.open(line)
            self.is_proved = True
        try:
            message = parse_json(line)
        except ValueError as error:
            raise WireError(f"a line that is no JSON: {error}") from None
        if not isinstance(message, dict):
            raise WireError(f"a {type(message).__name__} where a message is expected")
        return message

    def _poll(self, wanted: int, seconds: float) -> int:
        poll = select.poll()  # unlike select(), it takes descriptors above 1023
        try:
            poll.register(self._socket, wanted)
            found = poll.poll(1000 * seconds)
        except (OSError, ValueError):
            return select.POLLHUP  # closed; `receive` raises
        return found[0][1] if found else 0
