"""From the times of words to their places among collapsed units."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError

Ends = npt.NDArray[np.int64]


def frame_ends(sample_ends: npt.NDArray[Any], sample_rate: int, frames_per_second: float, num_frames: int) -> Ends:
    """Word ends in frames, rounded; the last word has all that follows, silence included. No words have no ends."""
    ends = np.rint(sample_ends / sample_rate * frames_per_second).astype(np.int64)
    ends[-1:] = num_frames
    return np.minimum(ends, num_frames)


def unit_ends(word_frame_ends: Ends, run_lengths: npt.NDArray[np.uint16]) -> Ends:
    """Word ends among collapsed units: the run boundary nearest to the word's end, each word having at least one unit.

    Repeats are collapsed over word boundaries, so that the units are what a tokenizer gives for the whole utterance; a
    boundary inside a repeated unit moves to the nearer end of the unit. Raises `UserError` if there are too few units.
    """
    num_words, num_units = len(word_frame_ends), len(run_lengths)
    if not num_words:
        return np.zeros(0, np.int64)
    if num_units < num_words:
        raise UserError(f"{num_words} words have only {num_units} units; speak more slowly or use more clusters")
    boundaries = np.cumsum(run_lengths.astype(np.int64))
    after = np.searchsorted(boundaries, word_frame_ends).clip(max=num_units - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(boundaries[before] - word_frame_ends) < np.abs(boundaries[after] - word_frame_ends)
    ends = np.where(nearer, before, after) + 1
    # Rising strictly from the left, and leaving one unit for each word that follows.
    index = np.arange(num_words)
    ends = np.maximum.accumulate(ends - index) + index
    ends = np.minimum(ends, num_units - num_words + 1 + index)
    ends[-1] = num_units
    return ends
