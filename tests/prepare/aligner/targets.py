"""A character for every frame: what the framewise part of training asks for."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from speech import Example

BLANK, DELIMITER = 0, 2
CHARACTERS = ("<pad>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz")
IDS = {character: index for index, character in enumerate(CHARACTERS)}
STRIDE = 320  # samples of a frame
RECEPTIVE_FIELD = 400

Ids = npt.NDArray[np.int64]


def text_ids(words: Sequence[str]) -> list[int]:
    """Ids of a text, words parted by the delimiter."""
    return [IDS[character] for character in "|".join(words)]


def _spelling(word: str) -> list[int]:
    """Ids of a word; CTC wants a blank between two equal ones."""
    ids: list[int] = []
    for character in word:
        if ids and ids[-1] == IDS[character]:
            ids.append(BLANK)
        ids.append(IDS[character])
    return ids


class Spans:
    """Every word of a batch with the frames that are its own.

    The delimiter has the first frame of the word that follows, so that a word's last character ends where the word
    does. Silence is blank.
    """

    def __init__(self, examples: Sequence[Example], num_frames: int) -> None:
        rows, starts, lengths, spellings = [], [], [], []
        self.base = np.full((len(examples), num_frames), BLANK, np.int64)
        for row, example in enumerate(examples):
            first = np.rint(example.starts / STRIDE).astype(np.int64)
            last = np.minimum(np.rint(example.ends / STRIDE).astype(np.int64), num_frames)
            self.base[row, first[1:]] = DELIMITER
            first[1:] += 1
            rows += [row] * len(first)
            starts.append(first)
            lengths.append(np.maximum(last - first, 1))
            spellings += [_spelling(word) for word in example.words]
        self.rows = np.array(rows)
        self.starts, self.lengths = np.concatenate(starts), np.concatenate(lengths)
        self.num_ids = np.array([len(ids) for ids in spellings])
        self.ids = np.zeros((len(spellings), self.num_ids.max()), np.int64)
        for word, ids in enumerate(spellings):
            self.ids[word, : len(ids)] = ids
        self._steps = np.arange(self.lengths.max())
        self._inside = self._steps < self.lengths[:, None]
        frames = np.minimum(self.starts[:, None] + self._steps, num_frames - 1)
        self._frames = frames  # [words, longest]

    def _fill(self, places: Ids) -> Ids:
        filled = self.base.copy()
        ids = np.take_along_axis(self.ids, places, 1)
        rows = np.broadcast_to(self.rows[:, None], ids.shape)
        filled[rows[self._inside], self._frames[self._inside]] = ids[self._inside]
        return filled

    def _even_places(self) -> Ids:
        shares = (self._steps + 0.5) / self.lengths[:, None]
        return np.minimum((shares * self.num_ids[:, None]).astype(np.int64), self.num_ids[:, None] - 1)

    def even(self) -> Ids:
        """[B, frames]: each word's characters spread evenly over its frames."""
        return self._fill(self._even_places())

    def best(self, log_probs: npt.NDArray[np.float32]) -> Ids:
        """[B, frames]: each word's characters in order over all its frames, as is likeliest by [B, frames, ids]."""
        scores = log_probs[self.rows[:, None, None], self._frames[:, :, None], self.ids[:, None, :]]
        words, longest, width = scores.shape
        total = np.full((words, width), -np.inf, np.float32)
        total[:, 0] = scores[:, 0, 0]
        moved = np.zeros((words, longest, width), bool)
        for step in range(1, longest):
            before = np.pad(total[:, :-1], ((0, 0), (1, 0)), constant_values=-np.inf)
            moved[:, step] = before > total
            total = np.maximum(before, total) + scores[:, step]
        places = self._even_places()
        enough = self.lengths >= self.num_ids
        place = self.num_ids - 1
        every = np.arange(words)
        for step in range(longest - 1, -1, -1):
            here = enough & (step < self.lengths)
            places[here, step] = place[here]
            place = np.where(here & moved[every, step, place], place - 1, place)
        return self._fill(places)
