"""Forced alignment takes the reading that was said, from probabilities made of known letters."""

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tolktrain.prepare.recordings.align.ctc import CtcAligner
from tolktrain.prepare.utterances import Aligned

LETTERS = ["<blank>", "|", "'", *string.ascii_lowercase, "天", "气", "ب", "ت"]


@dataclass
class HeardModel:
    """Emits each letter of what is heard for a frame, then a blank frame, with some doubt."""

    heard: str
    delimiter: int | None = 1
    blank: int = 0
    sample_rate: int = 100
    stride: int = 1

    def labels(self) -> list[int]:
        return [label for char in self.heard for label in (LETTERS.index(char.replace(" ", "|")), 0)]

    def token_ids(self, letter: str) -> list[int]:
        return [LETTERS.index(letter)] if letter in LETTERS else []

    def num_frames(self, num_samples: int) -> int:
        return len(self.labels())

    def frame_end(self, frame: int) -> float:
        return (frame + 1) / self.sample_rate

    def emissions(self, waveforms: list[Any]) -> list[torch.Tensor]:
        rows = torch.full((len(self.labels()), len(LETTERS)), 0.001)
        rows[torch.arange(len(rows)), torch.tensor(self.labels())] = 1
        return [(rows / rows.sum(-1, keepdim=True)).log()]


def align(text: str, heard: str, delimiter: int | None = 1) -> Aligned:
    aligner = CtcAligner.__new__(CtcAligner)
    model = HeardModel(heard, delimiter)
    vars(aligner).update(_language="en", _model=model, sample_rate=model.sample_rate)
    (aligned,) = aligner.align([np.zeros(len(model.labels()), np.float32)], [text])
    assert isinstance(aligned, Aligned), aligned
    return aligned


@pytest.mark.parametrize(
    ("text", "heard", "last_words"),
    [
        ("in 1984 he", "in one thousand nine hundred eighty four he", ["in", "four", "he"]),
        ("in 1984 he", "in nineteen eighty four he", ["in", "four", "he"]),
        ("on May 3 he", "on may the third he", ["on", "may", "third", "he"]),
        ("King Henry VIII. and", "king henry the eighth and", ["king", "henry", "eighth", "and"]),
        ("for $3.50 more", "for three fifty more", ["for", "fifty", "more"]),
        ("at 10:30", "at half past ten", ["at", "ten"]),
        ("St. Paul so", "saint paul so", ["saint", "paul", "so"]),
        ("10 kg 5 km/h", "ten kilos five kilometers an hour", ["ten", "kilos", "five", "hour"]),
    ],
)
def test_what_was_said_is_aligned(text: str, heard: str, last_words: list[str]) -> None:
    aligned = align(text, heard)
    assert aligned.words == tuple(text.split())
    assert aligned.confidence == pytest.approx(1 / (1 + 0.001 * (len(LETTERS) - 1)), abs=1e-3)
    place, ends = 0, []
    for word in last_words:
        place = heard.index(word, place) + len(word)
        ends.append(place * 2 / 100)
    # The last frame of a letter is followed by a blank, of which half is the word's.
    assert np.abs(aligned.ends - ends).max() <= 0.0101


def test_unspaced_words_have_no_delimiters() -> None:
    aligned = align("天气天", "天气天")
    assert aligned.words == ("天", "气", "天") and aligned.spaced == (False, False, False)
    assert np.abs(aligned.ends - [0.02, 0.04, 0.06]).max() <= 0.0101


def test_vowel_marks_that_the_model_lacks() -> None:
    aligned = align("بَتُ تِ", "بت ت")
    assert aligned.words == ("بَتُ", "تِ")
