"""Spoken words as the tokens of a CTC model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tolktrain.prepare.recordings.align.ctc_model import CtcModel
from tolktrain.prepare.recordings.align.normalize import Written
from tolktrain.prepare.recordings.align.scripts import is_optional_mark
from tolktrain.prepare.recordings.align.spoken_numbers import Spoken

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spelled:
    """Words in the tokens of a model."""

    tokens: Tokens
    last_tokens: list[int | None]  # for each written word the place of its last token; None if nothing is spoken
    unknown: int  # letters that the vocabulary lacks
    known: int

    def first_token(self, word: int) -> int:
        """The place of the first token of a word or of those after it."""
        return max((last + 1 for last in self.last_tokens[:word] if last is not None), default=0)


def spell(words: Sequence[Written], readings: Sequence[Spoken], model: CtcModel) -> Spelled:
    """The tokens of words in these readings, with the model's delimiter where a blank is written or spoken.

    Apostrophes, vowel marks and tatweel that the vocabulary lacks are left out.
    """
    tokens: list[int] = []
    last_tokens: list[int | None] = []
    unknown = known = 0
    for word, reading in zip(words, readings, strict=True):
        before = len(tokens)
        for number, spoken in enumerate(reading):
            found = [(char, model.token_ids(char)) for char in spoken]
            unknown += sum(not ids and char != "'" and not is_optional_mark(char) for char, ids in found)
            known += sum(bool(ids) for _, ids in found)
            delimited = tokens and (number > 0 or word.spaced) and any(ids for _, ids in found)
            if delimited and model.delimiter is not None:
                tokens.append(model.delimiter)
            tokens += [token for _, ids in found for token in ids]
        last_tokens.append(len(tokens) - 1 if len(tokens) > before else None)
    return Spelled(np.array(tokens, np.int64), last_tokens, unknown, known)
