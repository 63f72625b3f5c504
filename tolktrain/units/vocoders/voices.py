"""The choice of a speaker or style."""

from collections.abc import Sequence

from tolktrain.errors import UserError
from tolktrain.units.vocoders.kind import Voice

_MOST_SHOWN = 10


def require_one_voice(voice: Voice, vocoder: str) -> None:
    """Raise `UserError` if a speaker or style is chosen, for a vocoder that has no choice."""
    for what, given in (("speaker", voice.speaker), ("style", voice.style)):
        choose(what, given, None, (), vocoder)


def choose(what: str, given: str | None, count: int | None, names: Sequence[str], vocoder: str) -> int:
    """Number of the speaker or style that is given by name or number; the first if none is given.

    Args:
        what: "speaker" or "style".
        given: name or number.
        count: how many there are; None if the vocoder has no choice.
        names: of the first ones, maybe of all.
        vocoder: for messages.

    Raises:
        UserError: there is no such speaker or style.
    """
    if given is None:
        return 0
    if count is None:
        raise UserError(f"{what} {given!r:.40} is asked for, but {vocoder} has no choice of a {what}; leave it out")
    if given in names:
        return names.index(given)
    if given.isascii() and given.isdecimal() and len(given) < 10 and int(given) < count:
        return int(given)
    shown = (
        f", or one of {', '.join(names[:_MOST_SHOWN])}{', ...' if len(names) > _MOST_SHOWN else ''}" if names else ""
    )
    raise UserError(f"{vocoder} has no {what} {given!r:.40}; give a number from 0 to {count - 1}{shown}")
