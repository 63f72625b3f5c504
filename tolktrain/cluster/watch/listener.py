"""The watchdog's port. It listens on all interfaces, because ranks on other nodes connect to it; so may strangers.

Until a peer is authenticated, its cost is bounded: the numbers of connections and bytes, the time, and the greetings
per second. When all ranks have connected, the port is closed.
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

GREETING_SECONDS = 10.0  # timeout of the authentication
SPARE_CONNECTIONS = 64  # for strangers, in addition to those for ranks that have not connected yet
ACCEPTED_AT_ONCE = 64  # connections accepted before the accepted ones are read again
ACCEPTED_PER_SECOND = 250.0  # after as many as the job has ranks; a forged greeting costs about 0.2 ms

_TICK_SECONDS = 0.1
_BACKLOG = 4096  # the kernel may allow less


@dataclass(eq=False)
class Peer:
    """The other side of a connection."""

    wire: Wire
    address: str
    arrived: float
    nonce: str = field(default_factory=lambda: secrets.token_hex(messages.NONCE_BYTES))
    claimed: int | None = None  # the rank in its greeting
    rank: int | None = None  # the authenticated rank
    has_joined: bool = False  # whether it has sent a message since
    is_gone: bool = False


class Listener:
    """Accepts connections, and holds those that are not authenticated yet."""

    def __init__(self, selector: selectors.BaseSelector, key: bytes, world_size: int) -> None:
        """Opens a free port. Its events in `selector` have no data; those of a connection have the `Peer`."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._selector = selector
        self._key = key
        self._world_size = world_size
        # By address; the oldest connection of an address comes first.
        self._waiting: dict[str, dict[Peer, None]] = {}
        self._num_waiting = 0
        self._num_proved = 0
        self._budget = self._most = float(world_size + SPARE_CONNECTIONS)  # connections that may be accepted now
        self._filled = 0.0
        self.num_refused = 0  # valid greetings with another secret
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=_BACKLOG)
        self._server.setblocking(False)
        self._is_listening = False
        self.is_open = True
        self.port: int = self._server.getsockname()[1]
        self._listen(True)

    def accept(self, now: float) -> None:
        """Accept pending connections."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self._budget < 1 or not self.is_open:
                break
            self._budget -= 1
            try:
                connection, address = self._server.accept()
            except BlockingIOError:
                return
            except OSError:  # such as too many open files; the connection stays in the kernel's queue
                self._evict()
                self._budget = 0.0
                break
            self._admit(Peer(Wire(connection), str(address[0]), now))
        self._listen(self._budget >= 1)

    def greet(self, peer: Peer, message: Message) -> bool:
        """Process a message of a peer that is not authenticated yet. Returns whether it now is, with `peer.rank` set.

        Raises:
            ValueError: it is not the greeting of a rank.
        """
        if peer.claimed is not None:  # the line had a valid proof; otherwise `receive` would have raised
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
        """Close the connection to a peer."""
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
        """Close connections that exceed the timeout. Called regularly."""
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
        """Close the port and all connections that are not authenticated."""
        for peer in list(self.waiting()):
            self.forget(peer)
        self._listen(False)
        self.is_open = False
        self._server.close()

    def close_copies(self) -> None:
        """Close the sockets in a forked process, without changing the selector that it shares with its parent."""
        self._server.close()
        for peer in list(self.waiting()):
            peer.wire.close()

    def waiting(self) -> Iterator[Peer]:
        """Peers that are not authenticated yet."""
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
        """Close the oldest connection of the address with the most connections. Ranks connect again."""
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
