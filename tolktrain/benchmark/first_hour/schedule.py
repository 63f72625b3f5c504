"""Runs pieces in order within a time: what is essential has time kept for it, and what does not fit is named."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tolktrain.benchmark.first_hour.pieces import Piece

DONE, FAILED, STOPPED, NOT_RUN = "done", "failed", "stopped", "not run"
_CLOSING_SECONDS = 3.0  # kept for ending processes and writing the summary
_SAFETY = 1.5  # essential pieces may take longer than estimated before others take their time
_WORTH_TRYING = 0.5  # of the estimate of an essential piece: it may be faster than estimated


@dataclass(frozen=True)
class Outcome:
    """How a piece has ended."""

    status: str  # `DONE`, `FAILED`, `STOPPED` or `NOT_RUN`
    seconds: float
    error: str = ""


def run_pieces(
    pieces: Sequence[Piece],
    run: Callable[[Piece, float], Outcome],
    record: Callable[[Piece, Outcome], None],
    end: float,
    clock: Callable[[], float],
) -> dict[str, Outcome]:
    """Run the first piece that fits into the time left, until none does.

    A piece that had to wait because time was kept for essential ones is considered again after each other piece.

    Args:
        pieces: in order of their value.
        run: runs a piece and stops it after that many seconds.
        record: called with each outcome at once.
        end: time at which everything has ended.
        clock: tells the time in seconds.

    Returns:
        The outcome of each piece by name.
    """
    pending, outcomes = list(pieces), dict[str, Outcome]()
    while pending:
        left = end - clock() - _CLOSING_SECONDS
        piece = next((piece for piece in pending if _fits(piece, pending, left)), None)
        if piece is None:
            break
        pending.remove(piece)
        outcomes[piece.name] = run(piece, seconds_for(piece, pending, left))
        record(piece, outcomes[piece.name])
    for piece in pending:
        left = max(0.0, end - clock() - _CLOSING_SECONDS)
        outcomes[piece.name] = Outcome(NOT_RUN, 0.0, f"needs about {piece.estimate:.0f} s; {left:.0f} s were left")
        record(piece, outcomes[piece.name])
    return outcomes


def _fits(piece: Piece, pending: Sequence[Piece], left: float) -> bool:
    if piece.essential:
        return left >= _WORTH_TRYING * piece.estimate
    return left >= piece.estimate + _SAFETY * _kept(pending)


def seconds_for(piece: Piece, others: Sequence[Piece], left: float) -> float:
    """The hard limit of a piece: its own, or what the estimates of essential pieces among `others` leave; if it is not
    essential itself, what `_SAFETY` times these estimates leave."""
    kept = (1.0 if piece.essential else _SAFETY) * _kept(others)
    return max(min(piece.limit, left - kept), min(piece.estimate, left))


def _kept(pieces: Sequence[Piece]) -> float:
    return sum(piece.estimate for piece in pieces if piece.essential)
