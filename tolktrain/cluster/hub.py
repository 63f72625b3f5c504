"""Rank 0's side of the watch: hears all ranks, judges, and tells all of them when the job ends.

A connection of its own to every rank, rather than a store that is polled: the kernel closes it in the moment a process
dies, however it dies, and a rank that is busy for a minute keeps it.
"""

import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tolktrain.cluster import verdict
from tolktrain.cluster.verdict import Cause, Kind, RankState
from tolktrain.cluster.wire import Message, Wire

DEFAULT_HANG_SECONDS = 600.0  # until the configuration is read


@dataclass
class Limits:
    """Times that the configuration sets."""

    world_size: int
    hang_seconds: float = DEFAULT_HANG_SECONDS

    @property
    def silence_seconds(self) -> float:
        """Longest time without a sign of life."""
        return min(verdict.SILENCE_SECONDS, self.hang_seconds)

    @property
    def beat_seconds(self) -> float:
        """Time between two signs of life; rank 0 reads at most 200 of them a second."""
        return min(max(0.5, self.world_size / 200), self.hang_seconds / 20)


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

    def __init__(self, limits: Limits) -> None:
        self.token = secrets.token_hex(8)  # keeps out other jobs and port scanners
        self.all_told = threading.Event()  # every rank that lives has been told why the job ends
        self._limits = limits
        self._clock = RunningClock()
        self._wires: dict[int, Wire] = {}
        self._states: dict[int, RankState] = {}
        self._heard: dict[int, float] = {}
        self._causes: dict[int, Cause] = {}
        self._verdict: Cause | None = None
        self._told: set[int] = set()
        self._ticked = 0.0
        self._closing = False
        self._selector = selectors.DefaultSelector()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="watch-hub", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def is_busy(self, everyone: bool = False) -> bool:
        """Whether a rank that has joined is not done yet, or with `everyone` also whether one has not joined yet."""
        states = list(self._states.values())
        missing = everyone and len(states) < self._limits.world_size
        return missing or not all(state.finished for state in states)

    def release(self) -> None:
        """Tell all ranks that all have finished."""
        for wire in list(self._wires.values()):
            wire.send({"done": True})

    def close(self) -> None:
        """Stop listening."""
        self._closing = True
        self._thread.join()
        self.close_sockets()

    def close_sockets(self) -> None:
        """Also for a forked process: its copies would keep connections open when this process dies."""
        self._listener.close()
        for wire in list(self._wires.values()):
            wire.close()

    def _run(self) -> None:
        while not self._closing:
            # All that has arrived is read before it is judged who is silent.
            for key, _ in self._selector.select(0.1 if self._causes else min(0.5, self._limits.beat_seconds)):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            now = self._clock.tick()
            if self._verdict is None:
                self._verdict = self._judge(now)
                if self._verdict is not None:
                    self._announce(self._verdict)
            if now - self._ticked >= self._limits.beat_seconds:
                self._ticked = now
                for wire in self._wires.values():
                    wire.send({"deputy": self._deputy(), "first": str(self._states.get(0, RankState(0)))})

    def _accept(self) -> None:
        try:
            wire = Wire(self._listener.accept()[0])
        except OSError:
            return
        self._selector.register(wire, selectors.EVENT_READ, wire)

    def _read(self, wire: Wire) -> None:
        messages = wire.receive()
        for message in messages or ():
            self._take(wire, message)
        if messages is None:
            self._selector.unregister(wire)
            wire.close()
            for rank in [rank for rank, other in self._wires.items() if other is wire]:
                del self._wires[rank]
                del self._heard[rank]
                self._lost(rank)

    def _take(self, wire: Wire, message: Message) -> None:
        rank = next((rank for rank, other in self._wires.items() if other is wire), None)
        if rank is None:
            if message.get("token") != self.token:
                return
            rank = int(message["rank"])
            self._wires[rank] = wire
            self._states.setdefault(rank, RankState(rank))
            if self._verdict is not None:
                self._tell(rank, self._verdict)
        self._heard[rank] = self._clock.now
        if "over" in message and self._verdict is None:
            # This process was stopped meanwhile, and the others have gone without it.
            self._verdict = Cause(Kind.ENDED, 0, message["over"])
            self._tell(0, self._verdict)
        if "state" in message:
            state = message["state"]
            self._states[rank] = RankState(**{**state, "position": tuple(state["position"])})
        if "failure" in message and rank not in self._causes:
            failure = message["failure"]
            self._causes[rank] = Cause(Kind(failure["kind"]), rank, failure["text"], failure["code"], self._clock.now)

    def _lost(self, rank: int) -> None:
        state = self._states[rank]
        self._note_told(rank)
        if not state.finished and rank not in self._causes:
            self._causes[rank] = Cause(Kind.ENDED, rank, verdict.ended(state), seen=self._clock.now)

    def _judge(self, now: float) -> Cause | None:
        if self._causes:
            return verdict.choose(self._causes.values(), now)
        limits, states = self._limits, self._states
        return (
            verdict.find_silent(states, self._heard, now, limits.silence_seconds)
            or verdict.find_hang(states.values(), limits.hang_seconds)
            or verdict.find_missing(states, limits.world_size, now, limits.hang_seconds)
        )

    def _announce(self, cause: Cause) -> None:
        briefly(lambda: print(cause.message, file=sys.stderr, flush=True))
        for rank in list(self._wires):
            self._tell(rank, cause)

    def _tell(self, rank: int, cause: Cause) -> None:
        states = [self._states[rank] for rank in sorted(self._states)]
        self._wires[rank].send({"end": {"code": cause.code, "text": cause.message, "table": verdict.table(states)}})
        self._note_told(rank)

    def _note_told(self, rank: int) -> None:
        self._told.add(rank)
        if len(self._told) == self._limits.world_size:
            self.all_told.set()

    def _deputy(self) -> int:
        """Who speaks when this process has gone: a rank on another machine if there is one."""
        own = self._states[0].host if 0 in self._states else ""
        others = sorted(rank for rank in self._wires if rank != 0)
        elsewhere = [rank for rank in others if self._states[rank].host not in ("", own)]
        return next(iter(elsewhere or others), 1)


def briefly(action: Callable[[], object], seconds: float = 2.0) -> None:
    """Do something that may block, such as printing to a full pipe, without waiting for long."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
