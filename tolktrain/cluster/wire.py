"""Lines of JSON over a socket."""

import json
import select
import socket
import threading
from typing import Any

Message = dict[str, Any]

_SEND_SECONDS = 10.0  # for a few hundred bytes: beyond it the other side no longer reads


class Wire:
    """One end of a connection. Sends from any thread, receives in one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._sending = threading.Lock()
        self._rest = b""

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """Whether the message could be sent."""
        try:
            with self._sending:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Whole messages that have arrived, or None when the other side has gone."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None  # somebody else's connection

    def wait(self, seconds: float) -> bool:
        """Whether something arrives within `seconds`."""
        poll = select.poll()  # unlike select(), it takes descriptors above 1023
        try:
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(1000 * seconds))
        except (OSError, ValueError):
            return True  # closed: `receive` tells

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
