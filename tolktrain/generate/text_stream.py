"""Text as it grows."""

import itertools
from collections.abc import Sequence

from tokenizers import Tokenizer

_DECODED_AGAIN = 64


class TextStream:
    """Text as it grows; a character whose bytes are spread over several ids is given when it is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def piece(self, token: int) -> str:
        """What an id adds; nothing for EOS."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        added = text[len(self._shown) :]
        self._shown = text
        if len(self._ids) > _DECODED_AGAIN:
            # All ids again at each step would take quadratic time. What follows depends on the last ones.
            self._ids = self._ids[-_DECODED_AGAIN // 2 :]
            self._shown = self._tokenizer.decode(self._ids)
        return str(added)

    def rest(self) -> str:
        """What is left of a character that is not complete."""
        return str(self._tokenizer.decode(self._ids)[len(self._shown) :])


class UtteranceStream:
    """Utterances of text as they grow, up to a stop: piece by piece what `spelled` and `text_before` give of all."""

    def __init__(self, tokenizer: Tokenizer, eos: int, stops: Sequence[str]) -> None:
        self._tokenizer, self._eos, self._stops = tokenizer, eos, stops
        self._stream = TextStream(tokenizer)
        self._is_empty = True
        self._follows = False  # whether an utterance begins after another one
        self._held = ""  # text that may be the begin of a stop
        self._is_stopped = False

    def piece(self, token: int) -> str:
        """What an id adds."""
        held = max(map(len, self._stops), default=1) - 1
        if token != self._eos:
            return self._before_stop(self._after_others(self._stream.piece(token)), held)
        added = self._before_stop(self._after_others(self._stream.rest()), held)
        self._stream, self._follows = TextStream(self._tokenizer), not self._is_empty
        return added

    def rest(self) -> str:
        """What is left."""
        return self._before_stop(self._after_others(self._stream.rest()), 0)

    def _after_others(self, text: str) -> str:
        if self._follows:
            text = text.lstrip()
            if text:
                text, self._follows = f" {text}", False
        self._is_empty = self._is_empty and not text
        return text

    def _before_stop(self, text: str, num_held: int) -> str:
        """Known text that belongs to no stop; the last characters are held back."""
        if self._is_stopped:
            return ""
        known = self._held + text
        shown = text_before(known, self._stops)
        self._is_stopped = len(shown) < len(known)
        if not self._is_stopped:
            shown = known[: max(len(known) - num_held, 0)]
        self._held = known[len(shown) :]
        return shown


def spelled(tokenizer: Tokenizer, ids: Sequence[int], eos: int) -> str:
    """Text of ids, with a blank between utterances, which EOS ends."""
    text = ""
    for is_eos, piece in itertools.groupby(ids, lambda token: token == eos):
        if not is_eos:
            further: str = tokenizer.decode(list(piece))
            text = f"{text} {further.lstrip()}" if text and further.strip() else text + further
    return text


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop in it; all of it without one."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
