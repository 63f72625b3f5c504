"""Limits beyond which an utterance is valid, but not speech with its transcript."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import BoundsConfig
from tolktrain.prepare.utterances import EntryError, Reason
from tolktrain.units.base import Samples

_LEVEL_FRAMES_PER_SECOND = 100
_LEVEL_FRAMES = 5
_LETTERS_PER_WORD = 10  # text without blanks counts as words of this many letters
_FEWEST_UNITS_PER_WORD = 2

Powers = npt.NDArray[np.float64]  # [channels] mean squares without the constant part


def decibels(power: float) -> float:
    """The level of a mean square in dB; 0 dB is a square wave of full scale."""
    return 10 * math.log10(power) if power > 0 else -math.inf


def check_level(samples: Samples, sample_rate: int, channels: Powers | None, bounds: BoundsConfig) -> None:
    """Raise `EntryError` if the audio of an utterance [n] is silent.

    The level is that of the fifth-loudest hundredth of a second, so that neither pauses nor single clicks count. A
    constant offset is no audio. `channels`: the powers of all channels of the file, if it has several.
    """
    if bounds.min_level_db is None:
        return
    frame = max(1, sample_rate // _LEVEL_FRAMES_PER_SECOND)
    whole = samples[: len(samples) // frame * frame].reshape(-1, frame) if len(samples) >= frame else samples[None]
    powers = np.sort(whole.var(axis=1))
    level = decibels(float(powers[-min(_LEVEL_FRAMES, len(powers))]))
    if level < bounds.min_level_db:
        raise EntryError(
            Reason.SILENT,
            f"its level is {level:.0f} dB, below recordings.bounds.min_level_db {bounds.min_level_db:g}"
            f"; {_silence_correction(channels, bounds.min_level_db)}",
        )


def _silence_correction(channels: Powers | None, min_level: float) -> str:
    loudest = None if channels is None else int(channels.argmax())
    if channels is not None and decibels(float(channels[loudest])) >= min_level:
        return f"channel {loudest} has {decibels(float(channels[loudest])):.0f} dB: set channel: {loudest}"
    return "remove the utterance, or correct its offset and duration"


def check_channels(channels: Powers, mean: float, bounds: BoundsConfig) -> None:
    """Raise `EntryError` if channels with these powers cancel in their mean, whose power is `mean`.

    Compared with channels that are independent of each other, whose mean has the mean power divided by their number.
    """
    if bounds.max_cancellation_db is None:
        return
    least = -math.inf if bounds.min_level_db is None else bounds.min_level_db
    before, after = decibels(float(channels.mean()) / len(channels)), decibels(mean)
    if before - after > bounds.max_cancellation_db and decibels(float(channels.max())) >= least:
        loudest = int(channels.argmax())
        raise EntryError(
            Reason.CHANNELS,
            f"the channels cancel: their mean has a level of {after:.0f} dB, channel {loudest} has"
            f" {decibels(float(channels.max())):.0f} dB (recordings.bounds.max_cancellation_db is"
            f" {bounds.max_cancellation_db:g}); set channel: {loudest} in the manifest, or recordings.channel:"
            f" {loudest} for all recordings",
        )


def check_pace(words: Iterable[str], seconds: float, bounds: BoundsConfig) -> None:
    """Raise `EntryError` if nobody can speak these words in this time, or if they are few for this much audio.

    Words without a letter or digit do not count. One word more or less is allowed, because ends of utterances are cut
    inexactly. No words are not judged.
    """
    letters = [sum(map(str.isalnum, word)) for word in words]
    count = max(sum(map(bool, letters)), sum(letters) // _LETTERS_PER_WORD)
    if not count:
        return
    fast, slow = (count - 1) / seconds, (count + 1) / seconds
    if bounds.max_words_per_second is not None and fast > bounds.max_words_per_second:
        raise EntryError(
            Reason.PACE,
            f"{count} words in {seconds:.2f} s are {count / seconds:.0f} per second, above"
            f" recordings.bounds.max_words_per_second {bounds.max_words_per_second:g}; the transcript belongs to other"
            " audio, or offset and duration are wrong: correct them in the manifest",
        )
    if bounds.min_words_per_second is not None and slow < bounds.min_words_per_second:
        raise EntryError(
            Reason.PACE,
            f"{count} words in {seconds:.2f} s are {count / seconds:.4f} per second, below"
            f" recordings.bounds.min_words_per_second {bounds.min_words_per_second:g}; the transcript covers a part of"
            " the audio only: give offset and duration of the utterance in the manifest",
        )


def check_unit_ends(word_unit_ends: npt.NDArray[np.integer], seconds: float, bounds: BoundsConfig) -> None:
    """Raise `EntryError` if most words have a single unit, though there are units enough for all of them.

    `word_unit_ends` [words]: where each word ends among the units of its utterance. Speech tokenizers whose units are
    about as long as words give single units to many words; such utterances are not judged.
    """
    limit, count = bounds.max_single_unit_share, len(word_unit_ends)
    if limit is None or not count or word_unit_ends[-1] < _FEWEST_UNITS_PER_WORD * count:
        return
    num_single = int((np.diff(word_unit_ends, prepend=0) == 1).sum())
    if num_single > limit * count:
        raise EntryError(
            Reason.SINGLE_UNITS,
            f"{num_single} of {count} words have a single unit each, though the utterance has {word_unit_ends[-1]}"
            f" units in {seconds:.2f} s (recordings.bounds.max_single_unit_share is {limit:g}); such word times"
            " come from an aligner that failed, or belong to other audio: align the utterance again, for example with"
            " alignment.method: ctc, or correct its transcript",
        )
