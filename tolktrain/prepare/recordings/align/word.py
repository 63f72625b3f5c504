"""A word with its time, from values of any type."""

import math
from typing import Any

from tolktrain.prepare.utterances import EntryError, Reason, Word


def word(text: Any, start: Any, end: Any) -> Word:
    """A word whose parts may be of any type. Raises `EntryError` unless they are a text without blanks and numbers."""
    if not isinstance(text, str) or len(text.split()) != 1:
        raise wrong(f"expected one word without blanks, got {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise wrong(f"{text!r:.80} is not text: half of a surrogate pair") from None
    return Word(text.strip(), _seconds(start, text), _seconds(end, text))


def number(text: str, of: str) -> float:
    """Seconds from text. Raises `EntryError` that names the word `of` unless it is a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise wrong(f"the times of {of!r:.80} must be numbers, got {text!r:.80}") from None
    return _seconds(value, of)


def wrong(detail: str) -> EntryError:
    """The error for bad word times."""
    return EntryError(Reason.WORD_TIMES, detail)


def _seconds(value: Any, text: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong(f"the times of {text!r:.80} must be numbers, got {value!r:.80}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise wrong(f"the times of {text!r:.80} must be finite, got {value!r:.80}")
    return seconds
