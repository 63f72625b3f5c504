"""Rank 0's side of the watchdog: receives the states of all ranks, detects failures, and notifies all ranks of the end.

It has a connection to every rank instead of polling a store: the kernel closes a connection as soon as its process
ends, for whatever reason, and a rank that is busy for a minute keeps its connection.
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
CHECK_SECONDS = 0.5  # between two checks, each of which looks at all ranks
_FAST_CHECK_SECONDS = 0.1  # the same once a failure is known or the job is ending

_PARTS = frozenset({"state", "failure", "over"})


@dataclass
class Limits:
    """Timeouts that follow from the configuration."""

    world_size: int
    hang_seconds: float = DEFAULT_HANG_SECONDS

    @property
    def silence_seconds(self) -> float:
        """Longest time without a message: at least several beats, whatever the configured timeout."""
        return max(min(failures.SILENCE_SECONDS, self.hang_seconds), 4 * self._shortest_beat)

    @property
    def beat_seconds(self) -> float:
        """Time between two messages of a rank. Rank 0 reads about 200 messages a second, never more than 2,000."""
        often = min(self.hang_seconds / 20, failures.SILENCE_SECONDS / 6)
        return max(min(max(0.5, self.world_size / 200), often), self._shortest_beat)

    @property
    def _shortest_beat(self) -> float:
        return self.world_size / 2000


class RunningClock:
    """Seconds that this process ran. Of a gap between two ticks, at most `longest_tick` counts.

    Otherwise a job that is suspended at the terminal and continued later would be considered hanging.
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
    """A thread of rank 0 that receives messages of all ranks, including rank 0."""

    def __init__(self, limits: Limits, key: bytes, on_failure: Callable[[Cause], object] = lambda cause: None) -> None:
        """Opens the port.

        Args:
            limits: of the job.
            key: shared by all its ranks.
            on_failure: called with the cause if the hub itself fails, because failure detection has then ended.
        """
        self.all_notified = threading.Event()  # every running rank has received the reason of the end
        self.table = ""  # the state of every rank at the end of the job
        self._limits = limits
        self._on_failure = on_failure
        self._clock = RunningClock()
        self._peers: dict[int, Peer] = {}  # authenticated ranks
        self._states: dict[int, RankState] = {}  # of ranks that have joined
        self._finished: set[int] = set()
        self._heard: dict[int, float] = {}
        self._causes: dict[int, Cause] = {}
        self._final_cause: Cause | None = None
        self._notified: set[int] = set()
        self._checked_at = -CHECK_SECONDS
        self._deputy = 1  # the rank that prints the message if this process has ended
        self._releasing = threading.Event()
        self._released = threading.Event()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._awake, self._wake = socket.socketpair()  # interrupts a wait of the thread
        self._awake.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ, self._awake)
        self._listener = Listener(self._selector, key, limits.world_size)
        self.port = self._listener.port
        self._thread = guarded("watch-hub", self._run, self._fail)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_busy(self, everyone: bool = False) -> bool:
        """Whether a rank that has joined is still running; with `everyone` also whether a rank has not joined yet."""
        missing = everyone and len(self._states) < self._limits.world_size
        return missing or len(self._finished) < len(self._states)

    def release(self) -> None:
        """Notify all ranks that all have finished."""
        self._releasing.set()
        self._wake.send(b"x")
        while self._thread.is_alive() and not self._released.wait(0.1):
            pass

    def close(self) -> None:
        """Stop the thread and close all sockets."""
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.close_sockets()
        self._selector.close()

    def close_sockets(self) -> None:
        """Close all sockets. Also called in a forked process, whose copies would keep connections open when this
        process ends."""
        self._listener.close_copies()
        self._awake.close()
        self._wake.close()
        for peer in list(self._peers.values()):
            peer.wire.close()

    def _run(self) -> None:
        while not self._closing:
            now = self._clock.now
            # Read all messages before connections are accepted and before silent ranks are detected.
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
                _FAST_CHECK_SECONDS if self._causes else CHECK_SECONDS
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
        if self._causes or not self.is_busy() or self._listener.is_open:
            return _FAST_CHECK_SECONDS
        return min(CHECK_SECONDS, self._limits.beat_seconds)

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
        except Exception as error:  # an error in one connection must not end the hub
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
            # This process was suspended, and the other ranks have ended without it.
            self._final_cause = Cause(Kind.ENDED, 0, messages.text_of(message["over"]))
            self._build_table()
            self._notify(0, self._final_cause)
        if "state" in message:
            state = messages.state_of(message["state"], rank)
            self._states[rank] = state
            if state.finished:
                self._finished.add(rank)
            # The deputy gets rank 0's state at once too, because it prints that state if rank 0 ends.
            for receiver in {peer, self._peers.get(self._deputy, peer)} if rank == 0 else {peer}:
                if not receiver.wire.unsent:  # do not queue old states for a rank that does not read
                    self._send(receiver, {"deputy": self._deputy, "first": self._first()})
        if "failure" in message and rank not in self._causes:
            self._causes[rank] = messages.failure_of(message["failure"], rank, now)

    def _welcome(self, peer: Peer) -> None:
        assert peer.rank is not None
        if peer.rank in self._peers:
            self._listener.forget(peer)  # a rank has only one connection
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
        if peer.has_joined:  # a rank that has not joined yet connects again
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
        """Build the table for rank 0's log only: sent to all ranks, it would grow with the square of their number."""
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
        """Send without blocking: the rest of the message is sent when the other side reads."""
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
        """Choose the rank that prints the message if rank 0 ends: on another machine if possible."""
        own = self._states[0].host if 0 in self._states else ""
        others = [rank for rank in self._states if rank != 0 and rank in self._peers]
        elsewhere = (rank for rank in others if self._states[rank].host not in ("", own))
        return min(elsewhere, default=min(others, default=1))

    def _fail(self, error: BaseException) -> None:
        """End the job because the hub's thread has failed: no further failure would be detected."""
        cause = Cause(Kind.ENDED, 0, failed_watchdog(error))
        try:
            if self._final_cause is None:
                self._announce(cause)
        finally:
            self._on_failure(self._final_cause or cause)


def briefly(name: str, action: Callable[[], object], seconds: float = 2.0) -> None:
    """Run an action that may block, such as printing to a full pipe, and wait for it at most `seconds`."""
    thread = guarded(name, action)
    thread.start()
    thread.join(seconds)
