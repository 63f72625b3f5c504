"""Conversations for tests: random ones, and ones in which every id occurs once."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from tolktrain.data.turns import Turn
from tolktrain.vocabulary import Vocabulary

ROLES = ("assistant", "system", "user")
TEXT_SIZE, EOS, NUM_UNITS = 5000, 0, 9000
TOKENS = ("<|user|>", "<|assistant|>", "<|system|>")


def vocabulary(num_codebooks: int = 1) -> Vocabulary:
    return Vocabulary(TEXT_SIZE, EOS, NUM_UNITS, num_codebooks, TOKENS)


class Numbers:
    """Draws ids that nothing else has."""

    def __init__(self) -> None:
        self.text, self.unit = 1, 0

    def turn(
        self, role: str, words: Sequence[tuple[int, int]], text: bool, speech: bool, aligned: bool, books: int
    ) -> Turn:
        """Of words with these numbers of text ids and of units."""
        ids, rows = (np.array([word[place] for word in words]) for place in (0, 1))
        num_text, num_rows = int(ids.sum()) if text else 0, int(rows.sum()) if speech else 0
        text_ids = np.arange(self.text, self.text + num_text, dtype=np.uint32)
        units = np.arange(self.unit, self.unit + num_rows * books, dtype=np.uint16).reshape(num_rows, books)
        self.text, self.unit = self.text + num_text, self.unit + num_rows * books
        none = np.zeros(0, np.uint32)
        is_aligned = aligned and text and speech
        return Turn(
            role,
            text_ids,
            units,
            np.ones(num_rows, np.uint16),
            np.cumsum(ids).astype(np.uint32) if is_aligned else none,
            np.cumsum(rows).astype(np.uint32) if is_aligned else none,
        )


@st.composite
def conversations(draw: st.DrawFn, least: int = 1, most: int = 3, num_codebooks: int | None = None) -> list[list[Turn]]:
    """Of at least one answer each, whose turns have everything; those of others have text, speech or both."""
    numbers = Numbers()
    books = num_codebooks or draw(st.sampled_from([1, 1, 3]))
    sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=6)
    result = []
    for _ in range(draw(st.integers(least, most))):
        roles = draw(st.lists(st.sampled_from(ROLES), min_size=0, max_size=6))
        roles.insert(draw(st.integers(0, len(roles))), "assistant")
        turns = []
        for role in roles:
            text, speech = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
            if role == "assistant":
                text = speech = True
            turns.append(numbers.turn(role, draw(sizes), text, speech, role == "assistant", books))
        result.append(turns)
    return result


def transcribed(conversation: Sequence[Turn], seed: int = 0) -> list[Turn]:
    """The same, whose speech has text throughout."""
    return [
        turn
        if turn.has_text
        else Turn(turn.role, np.arange(4000 + seed + n * 7, 4003 + seed + n * 7), turn.units, turn.run_lengths)
        for n, turn in enumerate(conversation)
    ]
