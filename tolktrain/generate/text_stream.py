"""Text as it grows."""

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
