"""The watchdog's port. It listens on all interfaces, since ranks of other nodes come in by it, and so may anybody.

Until a peer has proved that it belongs to the job it can cost next to nothing: few connections, few bytes, little time,
and so many greetings a second. When all ranks have come in, the port is closed.
"""

import contextlib
import secrets
import selectors
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from tolktrain.cluster.watch import messages
from tolktrain.cluster.watch.secret import session_keys
from tolktrain.cluster.watch.wire import Message, Wire

GREETING_SECONDS = 10.0  # to prove it
SPARE_CONNECTIONS = 64  # of strangers, besides those of ranks that have not come in yet
ACCEPTED_AT_ONCE = 64  # before those that have been accepted are read again
ACCEPTED_PER_SECOND = 250.0  # once there were as many as the job has ranks; a forged greeting costs about 0.2 ms

_TICK_SECONDS = 0.1
_BACKLOG = 4096  # of the kernel's, which may allow less


@dataclass(eq=False)
class Peer:
    """The other side of a connection."""

    wire: Wire
    address: str
    arrived: float
    nonce: str = field(default_factory=lambda: secrets.token_hex(messages.NONCE_BYTES))
    claimed: int | None = None  # the rank that it says it is
    rank: int | None = None  # that it has proved to be
    has_joined: bool = False  # whether it has reported since
    is_gone: bool = False


class Listener:
    """Accepts connections, and keeps those of whom it is not known yet whether they are ranks."""

    def __init__(self, selector: selectors.BaseSelector, key: bytes, world_size: int) -> None:
        """Opens a free port. Its events come from `selector` without data, those of a connection with the `Peer`."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._selector = selector
        self._key = key
        self._world_size = world_size
        # By address, the longest there first, and of each the same.
        self._waiting: dict[str, dict[Peer, None]] = {}
        self._num_waiting = 0
        self._num_proved = 0
        self._budget = self._most = float(world_size + SPARE_CONNECTIONS)  # that may be accepted now
        self._filled = 0.0
        self.num_refused = 0  # that knew how to greet, but not the secret
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=_BACKLOG)
        self._server.setblocking(False)
        self._is_listening = False
        self.is_open = True
        self.port: int = self._server.getsockname()[1]
        self._listen(True)

    def accept(self, now: float) -> None:
        """Take in those that have connected."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self._budget < 1 or not self.is_open:
                break
            self._budget -= 1
            try:
                connection, address = self._server.accept()
            except BlockingIOError:
                return
            except OSError:  # such as too many open files: the connection stays in the kernel's queue
                self._evict()
                self._budget = 0.0
                break
            self._admit(Peer(Wire(connection), str(address[0]), now))
        self._listen(self._budget >= 1)

    def greet(self, peer: Peer, message: Message) -> bool:
        """Take a message of a peer that has proved nothing yet. Whether it now has, and `peer.rank` is known.

        Raises:
            ValueError: it is not how a rank greets.
        """
        if peer.claimed is not None:  # the line had a valid proof, or there would be no message
            messages.require_known(message, frozenset())
            self._leave(peer)
            self._num_proved += 1
            peer.rank = peer.claimed
            return True
        peer.claimed, nonce = messages.hello_of(message, self._world_size)
        to_rank, to_hub = session_keys(self._key, peer.claimed, peer.nonce, nonce)
        peer.wire.seal(outgoing=to_rank, incoming=to_hub)
        return False

    def forget(self, peer: Peer) -> None:
        """Hang up on a peer."""
        if peer.is_gone:
            return
        peer.is_gone = True
        if peer.rank is None:
            self._leave(peer)
            self.num_refused += peer.claimed is not None and not peer.wire.is_proved
        else:
            self._num_proved -= 1
        self._selector.unregister(peer.wire)
        peer.wire.close()

    def tick(self, now: float) -> None:
        """To be called every now and then: ends what takes too long."""
        if now - self._filled < _TICK_SECONDS:
            return
        self._budget = min(self._most, self._budget + (now - self._filled) * ACCEPTED_PER_SECOND)
        self._filled = now
        for group in list(self._waiting.values()):
            while (first := next(iter(group), None)) and now - first.arrived > GREETING_SECONDS:
                self.forget(first)
        if self.is_open and self._budget >= 1:
            self._listen(True)

    def close(self) -> None:
        """Nobody comes in any more."""
        for peer in list(self.waiting()):
            self.forget(peer)
        self._listen(False)
        self.is_open = False
        self._server.close()

    def close_copies(self) -> None:
        """For a forked process, which must not touch what it shares with the other one."""
        self._server.close()
        for peer in list(self.waiting()):
            peer.wire.close()

    def waiting(self) -> Iterator[Peer]:
        """Peers that have proved nothing yet."""
        for group in self._waiting.values():
            yield from group

    def _admit(self, peer: Peer) -> None:
        if self._num_waiting >= max(0, self._world_size - self._num_proved) + SPARE_CONNECTIONS:
            self._evict()
        self._waiting.setdefault(peer.address, {})[peer] = None
        self._num_waiting += 1
        self._selector.register(peer.wire, selectors.EVENT_READ, peer)
        peer.wire.send({"nonce": peer.nonce})

    def _evict(self) -> None:
        """Make room: of the address that has most of them, the one that is there for longest. Ranks try again."""
        largest = max(self._waiting.values(), key=len, default={})
        first = next(iter(largest), None)
        if first is not None:
            self.forget(first)

    def _leave(self, peer: Peer) -> None:
        group = self._waiting.get(peer.address, {})
        if peer in group:
            del group[peer]
            self._num_waiting -= 1
            if not group:
                del self._waiting[peer.address]

    def _listen(self, wanted: bool) -> None:
        if wanted and not self._is_listening:
            self._selector.register(self._server, selectors.EVENT_READ)
        elif self._is_listening and not wanted:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._server)
        self._is_listening = wanted
