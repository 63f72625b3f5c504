"""Audio of speech that grows by one frame of units at a time, in pieces that are played one after the other."""

import numpy as np

from tolktrain.data.sequences import IntArray
from tolktrain.generate.durations import Durations
from tolktrain.units.base import Samples, Vocoder, decode, expand

_PIECE_SECONDS = 0.8
_CONTEXT_SECONDS = 0.4  # decoded before a piece, so that it begins as the last one ended
_FADE_SECONDS = 0.02


class GrowingSpeech:
    """Decodes units as they come. Neighbouring pieces fade into each other, because a vocoder that sees a few units
    only gives other phases than one that sees all of them."""

    def __init__(self, vocoder: Vocoder, durations: Durations, frames_per_second: float) -> None:
        """Args: vocoder and durations of the units; frames_per_second, of the speech tokenizer."""
        self._vocoder, self._durations, self._frames_per_second = vocoder, durations, frames_per_second
        self._units: list[IntArray] = []  # [K] each
        self._settled = 0  # units whose durations are known, because those after them are
        self._frames: list[IntArray] = []  # [f, K] each, repeats included
        self._num_frames = 0
        self._given = 0  # frames that pieces have covered
        self._tail: Samples | None = None  # fades out under the next piece

    def add(self, unit: IntArray) -> Samples | None:
        """Add a unit [K]; the next piece if there is enough for one."""
        self._units.append(unit)
        self._settle(len(self._units) - self._durations.neighbours)
        if self._num_frames - self._given < _PIECE_SECONDS * self._frames_per_second:
            return None
        return self._piece(is_last=False)

    def _settle(self, end: int) -> None:
        """Determine the frames of the units before `end`."""
        if end <= self._settled:
            return
        begin = max(self._settled - self._durations.neighbours, 0)
        units = np.stack(self._units[begin : end + self._durations.neighbours])
        new = slice(self._settled - begin, end - begin)
        frames = expand(units[new], self._durations.run_lengths(units)[new])
        self._frames.append(frames.astype(np.int64))
        self._num_frames += len(frames)
        self._settled = end

    def rest(self) -> Samples:
        """What is left; possibly nothing."""
        self._settle(len(self._units))
        if self._num_frames == self._given:
            return np.zeros(0, np.float32) if self._tail is None else self._tail
        return self._piece(is_last=True)

    def _piece(self, is_last: bool) -> Samples:
        rate = self._vocoder.sample_rate
        context = min(self._given, round(_CONTEXT_SECONDS * self._frames_per_second))
        decoded = decode(self._vocoder, np.concatenate(self._frames)[self._given - context :])
        fade = 0 if self._tail is None else len(self._tail)
        added = round((self._num_frames - self._given) * rate / self._frames_per_second)
        samples = decoded[max(len(decoded) - added - fade, 0) :].copy()
        if self._tail is not None:
            rising = np.linspace(0, 1, fade, dtype=np.float32)
            samples[:fade] = samples[:fade] * rising + self._tail * rising[::-1]
        self._given = self._num_frames
        if is_last:
            return samples
        kept = len(samples) - min(round(_FADE_SECONDS * rate), added)
        self._tail = samples[kept:]
        return samples[:kept]
