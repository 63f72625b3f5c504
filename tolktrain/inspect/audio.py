"""Audio of a sequence's units."""

from collections.abc import Sequence

import numpy as np

from tolktrain.inspect.spans import TakenApart
from tolktrain.units.base import Frames, Samples, Vocoder, decode, expand

PAUSE_SECONDS = 0.3


def speech_frames(apart: TakenApart, most_frames: int) -> list[Frames]:
    """Frames [n, K] of each stretch of speech in the sequence, at most `most_frames` together, repeats restored.

    Consecutive utterances of the record are one stretch if nothing is between them in the sequence.
    """
    record = apart.record
    stretches = []
    for span in apart.spans:
        places = span.places[span.places >= 0]
        if span.kind != "speech" or not len(places):
            continue
        frames = expand(record.units[places], record.run_lengths[places])[:most_frames]
        most_frames -= len(frames)
        if len(frames):
            stretches.append(frames)
    return stretches


def waveform_of(stretches: Sequence[Frames], vocoder: Vocoder) -> Samples:
    """The stretches one after the other, with a short pause where the sequence has text."""
    pause = np.zeros(round(PAUSE_SECONDS * vocoder.sample_rate), np.float32)
    pieces: list[Samples] = []
    for frames in stretches:
        pieces += ([pause] if pieces else []) + [decode(vocoder, frames)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
