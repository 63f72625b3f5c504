"""CTC forced alignment in plain numpy, to measure the aligner with."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from targets import BLANK, DELIMITER, text_ids


class Aligned(NamedTuple):
    """Words on the frames of a recording."""

    ends: npt.NDArray[np.int64]  # [words], in frames, exclusive
    confidence: float  # geometric mean over characters of the mean over their frames, geometric too


def align(log_probs: npt.NDArray[np.float32], words: tuple[str, ...]) -> Aligned:
    """The likeliest path of the words through log-probabilities [frames, ids]."""
    ids = text_ids(words)
    states = np.full(2 * len(ids) + 1, BLANK)
    states[1::2] = ids
    skips = np.zeros(len(states), bool)  # a blank may be left out between two different characters
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    steps = np.zeros((len(log_probs), len(states)), np.int8)
    for frame in range(1, len(log_probs)):
        one = np.concatenate([[-np.inf], score[:-1]])
        two = np.where(skips, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        options = np.stack([score, one, two])
        steps[frame] = options.argmax(0)
        score = options.max(0) + log_probs[frame, states]
    state = len(states) - 1 - int(score[-2] > score[-1])
    path = np.empty(len(log_probs), np.int64)
    for frame in range(len(log_probs) - 1, -1, -1):
        path[frame] = state
        state -= int(steps[frame, state])
    chosen = log_probs[np.arange(len(path)), states[path]]
    runs = [np.flatnonzero(path == 2 * place + 1) for place in range(len(ids))]
    lasts = [place for place in range(len(ids)) if place + 1 == len(ids) or ids[place + 1] == DELIMITER]
    means = [chosen[run].mean() for run, token in zip(runs, ids, strict=True) if token != DELIMITER]
    return Aligned(np.array([runs[place][-1] + 1 for place in lasts]), float(np.exp(np.mean(means))))
