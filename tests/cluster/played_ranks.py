"""Many ranks played by one process, over real connections to a hub: what they hear is counted."""

import errno
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tolktrain.cluster.watch.failures import RankState
from tolktrain.cluster.watch.secret import session_keys
from tolktrain.cluster.watch.wire import Message, Wire, WireError

KEY = b"what the ranks of a job know, and nobody else"


@dataclass(eq=False)
class PlayedRank:
    """One rank: greets as soon as the hub has spoken, and reports once when it is let in."""

    rank: int
    wire: Wire
    reads: bool = True
    is_greeted: bool = False
    is_in: bool = False
    heard: list[Message] = field(default_factory=list)
    end: str | None = None

    def state(self, **fields: Any) -> Message:
        """What it says about itself."""
        state = RankState(self.rank, f"node{self.rank // 8}", f"data {self.rank}", "step 3, adding", (3, 1))
        return {"state": {**asdict(state), **fields}}


class Crowd:
    """Plays `ranks` to the hub at `port`."""

    def __init__(self, port: int, ranks: Iterable[int], key: bytes = KEY) -> None:
        self._port = port
        self._key = key
        self._selector = selectors.DefaultSelector()
        self.ranks = {}
        self.num_messages = 0
        self.num_bytes = 0
        for rank in ranks:
            self.ranks[rank] = PlayedRank(rank, self._connect())
            self._selector.register(self.ranks[rank].wire, selectors.EVENT_READ, self.ranks[rank])

    def play(self, until: Callable[[], bool], seconds: float = 60.0) -> None:
        """Hear and answer until something is so. Fails if it is not within `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "it has not come to this"
            for key, _ in self._selector.select(0.05):
                if key.data.reads:
                    self._hear(key.data)

    def join(self) -> None:
        """Let all ranks come in."""
        self.play(lambda: all(rank.is_in for rank in self.ranks.values()))

    def say(self, message: Callable[[PlayedRank], Message], ranks: Iterable[int] | None = None) -> None:
        """Send something from each rank, or from some."""
        for rank in self.ranks if ranks is None else ranks:
            self.ranks[rank].wire.send(message(self.ranks[rank]))

    def hang_up(self) -> None:
        """All leave."""
        for played in self.ranks.values():
            played.wire.close()
        self._selector.close()

    def _connect(self) -> Wire:
        connection = socket.socket()
        connection.setblocking(False)
        if connection.connect_ex(("127.0.0.1", self._port)) not in (0, errno.EINPROGRESS):
            raise AssertionError("the port is closed")
        return _Counted(connection, self)

    def _hear(self, played: PlayedRank) -> None:
        try:
            for message in played.wire.receive():
                self.num_messages += 1
                self._answer(played, message)
        except WireError:
            self._selector.unregister(played.wire)
            played.wire.close()
            if not played.is_in:  # it tries again
                played.wire, played.is_greeted = self._connect(), False
                self._selector.register(played.wire, selectors.EVENT_READ, played)

    def _answer(self, played: PlayedRank, message: Message) -> None:
        if not played.is_greeted:
            played.is_greeted = True
            nonce = secrets.token_hex(16)
            to_rank, to_hub = session_keys(self._key, played.rank, message["nonce"], nonce)
            played.wire.send({"rank": played.rank, "nonce": nonce})
            played.wire.seal(outgoing=to_hub, incoming=to_rank)
            played.wire.send({})
        elif not played.is_in:
            played.is_in = True
            played.wire.send(played.state())
        else:
            played.heard.append(message)
            if "end" in message:
                played.end = message["end"]["text"]


class _Counted(Wire):
    """Counts what arrives."""

    def __init__(self, connection: socket.socket, crowd: Crowd) -> None:
        super().__init__(connection)
        self._crowd = crowd

    def _parsed(self, line: bytes) -> Message:
        self._crowd.num_bytes += len(line) + 1
        return super()._parsed(line)


def need_files(number: int) -> None:
    """Allow this process so many open files; skips the test where the machine does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"{number} open files are needed; the hard limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
