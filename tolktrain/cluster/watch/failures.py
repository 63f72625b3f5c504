"""Failure detection: which rank is the cause of a failure, from the reports of all ranks. Pure functions."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tolktrain.cluster.signals import EXIT_PREEMPTED
from tolktrain.errors import UserError

EXIT_FAILED = 1
OTHER_SECRET = "set TOLKTRAIN_JOB_SECRET to the same random text for all processes of the job"

SETTLE_SECONDS = 0.3  # ranks that raise the same error report it within this time
CONSEQUENCE_SECONDS = 5.0  # timeout for the cause of an error that looks like the consequence of another rank's end
SILENCE_SECONDS = 60.0  # without a message; long, because a library may hold the interpreter lock for a while

_CONSEQUENCE = re.compile(r"gloo|nccl|c10d|tcpstore|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class Kind(IntEnum):
    """How a rank failed. A lower kind explains a higher one."""

    ENDED = 0  # its process ended without a report
    RAISED = 1
    CONSEQUENCE = 2  # it raised an error that is typical when another rank has ended


@dataclass(frozen=True)
class Cause:
    """A rank that has failed."""

    kind: Kind
    rank: int
    text: str
    code: int = EXIT_FAILED
    seen: float = 0.0  # seconds on the hub's clock

    @property
    def message(self) -> str:
        """The message for the user."""
        kind = "" if self.code == EXIT_PREEMPTED else "error: "  # a signal is none
        return f"rank {self.rank}: {kind}{self.text}"


@dataclass(frozen=True)
class RankState:
    """The last state that a rank reported."""

    rank: int
    host: str = ""
    place: str = ""
    at: str = "starting"
    position: tuple[int, int] = (0, 0)
    idle_seconds: float = 0.0  # since `position` changed
    line: str = ""  # of code, where its main thread is
    waiting: bool = False  # whether it probably waits for other ranks
    finished: bool = False
    hint: str = ""  # what it probably waits for, if that is known

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.host, self.place) if part)
        return f"{self.at} ({where})" if where else self.at


class OtherRankFailed(RuntimeError):
    """Raised when another rank has reported a failure."""


def is_consequence(error: BaseException) -> bool:
    """Whether an error is probably the consequence of another rank's end."""
    if isinstance(error, UserError):
        return False
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, OtherRankFailed) or bool(
        re.search(r"\bDist\w*Error", names)
        or (isinstance(error, (RuntimeError, ConnectionError)) and _CONSEQUENCE.search(str(error)))
    )


def choose(causes: Collection[Cause], now: float) -> Cause | None:
    """The cause that explains the others, once enough time has passed for a better one to be reported."""
    if not causes:
        return None
    # Of ended processes the first; of errors that of the lowest rank, because all ranks may raise the same error.
    best = min(causes, key=lambda cause: (cause.kind, cause.seen if cause.kind == Kind.ENDED else cause.rank))
    first = min(cause.seen for cause in causes if cause.kind == best.kind)
    timeout = CONSEQUENCE_SECONDS if best.kind == Kind.CONSEQUENCE else SETTLE_SECONDS
    return best if now - first >= timeout else None


def ended(state: object) -> str:
    """The message for a rank whose connection was closed by its end."""
    return (
        f"the process ended without a report, killed (kill -9, out of memory) or crashed. Last state: {state};"
        " its last output, its log and the system's log may contain the reason"
    )


def broken(state: object, reason: str) -> str:
    """The message for a rank that is alive, but whose connection cannot be used any more."""
    return (
        f"its connection to rank 0 was closed for {reason}; all ranks must run the same version of tolktrain. Last"
        f" heard of at {state}"
    )


def silent(state: object, seconds: float) -> str:
    """The message for a rank that is connected but sends nothing."""
    return (
        f"no message for {seconds:.0f} s: its process is stopped or blocked, or its machine cannot be reached."
        f" Last state: {state}"
    )


def find_silent(states: Mapping[int, RankState], heard: Mapping[int, float], now: float, limit: float) -> Cause | None:
    """The rank that has sent no message for the longest time, if that is beyond `limit` seconds."""
    unfinished = [rank for rank in heard if not states[rank].finished]
    rank = min(unfinished, key=lambda rank: heard[rank], default=None)
    if rank is None or now - heard[rank] < limit:
        return None
    return Cause(Kind.ENDED, rank, silent(states[rank], now - heard[rank]))


def find_hang(states: Collection[RankState], limit: float) -> Cause | None:
    """The rank that the others wait for, if it has made no progress for `limit` seconds.

    The candidates are the ranks with the lowest position; of these, the ranks that do not wait for others; of these,
    the ranks at the line of code that the fewest share, because ranks that wait on a GPU do so at different lines. As
    long as a candidate makes progress, the others may wait.
    """
    suspects = [state for state in states if not state.finished]
    if not any(state.idle_seconds >= limit for state in suspects):
        return None  # as nearly always
    least = min(state.position for state in suspects)
    suspects = [state for state in suspects if state.position == least]
    suspects = [state for state in suspects if not state.waiting] or suspects
    sharing = Counter(state.line for state in suspects)
    rarest = min(sharing.values())
    suspects = [state for state in suspects if sharing[state.line] == rarest and state.idle_seconds >= limit]
    if not suspects:
        return None
    first, *others = sorted(suspects, key=lambda state: state.rank)
    text = no_progress(first, limit)
    if first.waiting:
        text += ", where it waits for other ranks, as all ranks do: they probably execute different collectives"
    if others:
        few = "; ".join(f"rank {state.rank} at {state}, in {state.line}" for state in others[:3])
        text += f"; or the cause is one of {len(others)} more: {few}"
    return Cause(Kind.ENDED, first.rank, text)


def no_progress(state: RankState, limit: float) -> str:
    """The message for a rank that has made no progress for `limit` seconds."""
    text = (
        f"no progress for {state.idle_seconds:.0f} s (parallel.hang_timeout_seconds is {limit:g}) at {state}; it is in"
        f" {state.line or 'an unknown place'}"
    )
    return f"{text}; {state.hint}" if state.hint else text


def find_missing(
    joined: Collection[int], world_size: int, now: float, limit: float, num_refused: int = 0
) -> Cause | None:
    """A rank that has not appeared `limit` seconds after the start; `num_refused` greetings had another secret."""
    if now < limit or len(joined) >= world_size:
        return None
    missing = [rank for rank in range(world_size) if rank not in joined]
    more = f", nor have {len(missing) - 1} more" if len(missing) > 1 else ""
    text = f"has not joined the others within {limit:g} s (parallel.hang_timeout_seconds){more}; its process or node"
    text += " did not start, or cannot reach rank 0"
    if num_refused:
        text += f"; {num_refused} greetings with another secret were refused: {OTHER_SECRET}"
    return Cause(Kind.ENDED, missing[0], text)


def table(states: Sequence[RankState]) -> str:
    """The state of every rank, for the log."""
    return "\n".join(f"rank {state.rank}: {state}, for {state.idle_seconds:.0f} s, in {state.line}" for state in states)
