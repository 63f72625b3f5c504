"""Rank 0's side of the watch: hears all ranks, judges, and tells all of them when the job ends.

A connection of its own to every rank, rather than a store that is polled: the kernel closes it in the moment a process
dies, however it dies, and a rank that is busy for a minute keeps it.
"""

import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tolktrain.cluster.threads import describe, failed_watchdog, guarded
from tolktrain.cluster.watch import failures, messages
from tolktrain.cluster.watch.failures import Cause, Kind, RankState
from tolktrain.cluster.watch.listener import Listener, Peer
from tolktrain.cluster.watch.wire import Message, WireError
from tolktrain.files.printable import printable

DEFAULT_HANG_SECONDS = 600.0  # until the configuration is read
CHECK_SECONDS = 0.5  # between two judgements, each of which looks at all ranks
_HASTE_SECONDS = 0.1  # once there is a cause, or something to wait for

_PARTS = frozenset({"state", "failure", "over"})


@dataclass
class Limits:
    """Times that the configuration sets."""

    world_size: int
    hang_seconds: float = DEFAULT_HANG_SECONDS

    @property
    def silence_seconds(self) -> float:
        """Longest time without a sign of life: several beats, whatever the configured timeout."""
        return max(min(failures.SILENCE_SECONDS, self.hang_seconds), 4 * self._shortest_beat)

    @property
    def beat_seconds(self) -> float:
        """Time between two signs of life. Rank 0 reads about 200 of them a second, and never more than 2,000."""
        often = min(self.hang_seconds / 20, failures.SILENCE_SECONDS / 6)
        return max(min(max(0.5, self.world_size / 200), often), self._shortest_beat)

    @property
    def _shortest_beat(self) -> float:
        return self.world_size / 2000


class RunningClock:
    """Seconds that this process ran. A gap between two ticks, in which it was stopped or blocked, hardly counts.

    Otherwise a job that is stopped at the terminal and goes on later would be taken for one that hangs.
    """

    def __init__(self, longest_tick: float = 2.0) -> None:
        self._longest_tick = longest_tick
        self._last = time.monotonic()
        self.now = 0.0

    def tick(self) -> float:
        """Count the time since the last tick; returns the sum."""
        now = time.monotonic()
        self.now += min(now - self._last, self._longest_tick)
        self._last = now
        return self.now


class Hub:
    """A thread that listens to all ranks, its own included."""

    def __init__(self, limits: Limits, key: bytes, on_failure: Callable[[Cause], object] = lambda cause: None) -> None:
        """Opens the port.

        Args:
            limits: the job's.
            key: what all its ranks know.
            on_failure: told why the job ends when the hub itself has failed: then nobody judges any more.
        """
        self.all_notified = threading.Event()  # every rank that lives has been told why the job ends
        self.table = ""  # what every rank was at, once the job ends
        self._limits = limits
        self._on_failure = on_failure
        self._clock = RunningClock()
        self._peers: dict[int, Peer] = {}  # of ranks that have proved who they are
        self._states: dict[int, RankState] = {}  # of those that have joined
        self._finished: set[int] = set()
        self._heard: dict[int, float] = {}
        self._causes: dict[int, Cause] = {}
        self._final_cause: Cause | None = None
        self._notified: set[int] = set()
        self._checked_at = -CHECK_SECONDS
        self._deputy = 1  # who speaks when this process has gone
        self._releasing = threading.Event()
        self._released = threading.Event()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._awake, self._wake = socket.socketpair()  # ends a wait of the thread at once
        self._awake.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ, self._awake)
        self._listener = Listener(self._selector, key, limits.world_size)
        self.port = self._listener.port
        self._thread = guarded("watch-hub", self._run, self._fail)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def is_busy(self, everyone: bool = False) -> bool:
        """Whether a rank that has joined is not done yet, or with `everyone` also whether one has not joined yet."""
        missing = everyone and len(self._states) < self._limits.world_size
        return missing or len(self._finished) < len(self._states)

    def release(self) -> None:
        """Tell all ranks that all have finished."""
        self._releasing.set()
        self._wake.send(b"x")
        while self._thread.is_alive() and not self._released.wait(0.1):
            pass

    def close(self) -> None:
        """Stop listening."""
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.close_sockets()
        self._selector.close()

    def close_sockets(self) -> None:
        """Also for a forked process: its copies would keep connections open when this process dies."""
        self._listener.close_copies()
        self._awake.close()
        self._wake.close()
        for peer in list(self._peers.values()):
            peer.wire.close()

    def _run(self) -> None:
        while not self._closing:
            now = self._clock.now
            # All that has arrived is read before others come in, and before it is judged who is silent.
            events = self._selector.select(self._longest_pause())
            for key, found in sorted(events, key=lambda event: event[0].data is None):
                if key.data is None:
                    self._listener.accept(now)
                elif key.data is self._awake:
                    self._awake.recv(64)
                else:
                    self._serve(key.data, found)
            now = self._clock.tick()
            self._listener.tick(now)
            if self._final_cause is None and now - self._checked_at >= (
                _HASTE_SECONDS if self._causes else CHECK_SECONDS
            ):
                self._checked_at = now
                self._deputy = self._choose_deputy()
                self._final_cause = self._diagnose(now)
                if self._final_cause is not None:
                    self._announce(self._final_cause)
            if self._releasing.is_set() and not self._released.is_set():
                for peer in list(self._peers.values()):
                    self._send(peer, {"done": True})
                self._released.set()

    def _longest_pause(self) -> float:
        hurry = self._causes or not self.is_busy()
        return _HASTE_SECONDS if hurry or self._listener.is_open else min(CHECK_SECONDS, self._limits.beat_seconds)

    def _serve(self, peer: Peer, events: int) -> None:
        if peer.is_gone:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ:
                for message in peer.wire.receive():
                    self._take(peer, message)
                    if peer.is_gone:
                        return
        except WireError as error:
            self._hang_up(peer, str(error))
        except Exception as error:  # whatever is wrong with it, it is this connection's affair alone
            self._hang_up(peer, describe(error))

    def _take(self, peer: Peer, message: Message) -> None:
        if peer.rank is None:
            if self._listener.greet(peer, message):
                self._welcome(peer)
            return
        rank, now = peer.rank, self._clock.now
        messages.require_known(message, _PARTS)
        if not peer.has_joined:
            self._join(peer, rank)
        self._heard[rank] = now
        if "over" in message and self._final_cause is None:
            # This process was stopped meanwhile, and the others have gone without it.
            self._final_cause = Cause(Kind.ENDED, 0, messages.text_of(message["over"]))
            self._build_table()
            self._notify(0, self._final_cause)
        if "state" in message:
            state = messages.state_of(message["state"], rank)
            self._states[rank] = state
            if state.finished:
                self._finished.add(rank)
            # What rank 0 is at is heard at once by the deputy too, who would have to say it.
            for hearer in {peer, self._peers.get(self._deputy, peer)} if rank == 0 else {peer}:
                if not hearer.wire.unsent:  # one that does not read gets no heap of old news
                    self._send(hearer, {"deputy": self._deputy, "first": self._first()})
        if "failure" in message and rank not in self._causes:
            self._causes[rank] = messages.failure_of(message["failure"], rank, now)

    def _welcome(self, peer: Peer) -> None:
        assert peer.rank is not None
        if peer.rank in self._peers:
            self._listener.forget(peer)  # while the first one lives there is no second one
            return
        self._peers[peer.rank] = peer
        peer.wire.send({})

    def _join(self, peer: Peer, rank: int) -> None:
        peer.has_joined = True
        self._states.setdefault(rank, RankState(rank))
        if len(self._states) == self._limits.world_size:
            self._listener.close()
        if self._final_cause is not None:
            self._notify(rank, self._final_cause)

    def _hang_up(self, peer: Peer, reason: str) -> None:
        if peer.is_gone:
            return
        self._listener.forget(peer)
        rank = peer.rank
        if rank is None or self._peers.get(rank) is not peer:
            return
        del self._peers[rank]
        if peer.has_joined:  # before that it has not begun; where it is, it tries again
            self._heard.pop(rank, None)
            self._lost(rank, reason)

    def _lost(self, rank: int, reason: str) -> None:
        state = self._states[rank]
        self._mark_notified(rank)
        if not state.finished and rank not in self._causes:
            text = failures.broken(state, reason) if reason else failures.ended(state)
            self._causes[rank] = Cause(Kind.ENDED, rank, text, seen=self._clock.now)

    def _diagnose(self, now: float) -> Cause | None:
        if self._causes:
            return failures.choose(self._causes.values(), now)
        limits, states = self._limits, self._states
        return (
            failures.find_silent(states, self._heard, now, limits.silence_seconds)
            or failures.find_hang(states.values(), limits.hang_seconds)
            or failures.find_missing(states, limits.world_size, now, limits.hang_seconds, self._listener.num_refused)
        )

    def _announce(self, cause: Cause) -> None:
        self._build_table()
        briefly("watch-print", lambda: print(printable(cause.message), file=sys.stderr, flush=True))
        for rank in list(self._peers):
            self._notify(rank, cause)

    def _build_table(self) -> None:
        """Once, and for rank 0's log alone: sent to all ranks it would grow with the square of their number."""
        self.table = failures.table([self._states[rank] for rank in sorted(self._states)])

    def _notify(self, rank: int, cause: Cause) -> None:
        peer = self._peers.get(rank)
        if peer is None or not peer.has_joined:
            return
        self._send(
            peer, {"end": {"code": cause.code, "text": messages.shortened(cause.message, messages.LONGEST_TEXT)}}
        )
        if not peer.wire.unsent:
            self._mark_notified(rank)

    def _mark_notified(self, rank: int) -> None:
        self._notified.add(rank)
        if len(self._notified) == self._limits.world_size:
            self.all_notified.set()

    def _send(self, peer: Peer, message: Message) -> None:
        """Never waits: what the other side has no room for is sent when it has."""
        peer.wire.send(message)
        if peer.wire.unsent:
            self._selector.modify(peer.wire, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def _flush(self, peer: Peer) -> None:
        peer.wire.flush()
        if not peer.wire.unsent:
            self._selector.modify(peer.wire, selectors.EVENT_READ, peer)
            if self._final_cause is not None and peer.rank is not None:
                self._mark_notified(peer.rank)

    def _first(self) -> str:
        return messages.shortened(str(self._states.get(0, RankState(0))))

    def _choose_deputy(self) -> int:
        """A rank on another machine if there is one."""
        own = self._states[0].host if 0 in self._states else ""
        others = [rank for rank in self._states if rank != 0 and rank in self._peers]
        elsewhere = (rank for rank in others if self._states[rank].host not in ("", own))
        return min(elsewhere, default=min(others, default=1))

    def _fail(self, error: BaseException) -> None:
        """The hub's own thread has failed: the job would go on unwatched, and each rank would find rank 0 silent."""
        cause = Cause(Kind.ENDED, 0, failed_watchdog(error))
        try:
            if self._final_cause is None:
                self._announce(cause)
        finally:
            self._on_failure(self._final_cause or cause)


def briefly(name: str, action: Callable[[], object], seconds: float = 2.0) -> None:
    """Do something that may block, such as printing to a full pipe, without waiting for long."""
    thread = guarded(name, action)
    thread.start()
    thread.join(seconds)
