"""The interfaces of speech tokenizers, from audio to frames of discrete units, and of vocoders, from units to audio.
Also the collapsing of repeated frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError

Samples = npt.NDArray[np.float32]  # [n], mono, within -1 and 1
Frames = npt.NDArray[np.uint16]  # [frames, K]
RunLengths = npt.NDArray[np.uint16]  # [n], frames each row of units lasts

LONGEST_RUN = np.iinfo(np.uint16).max


class SpeechTokenizer(Protocol):
    """A named, versioned artifact that turns audio into units."""

    @property
    def name(self) -> str:
        """Kind of tokenizer, as in speech_tokenizer.json."""
        ...

    @property
    def version(self) -> str:
        """Version of the features and the file format."""
        ...

    @property
    def num_units(self) -> int:
        """Units of one codebook."""
        ...

    @property
    def num_codebooks(self) -> int:
        """Units of one frame, K."""
        ...

    @property
    def frames_per_second(self) -> float:
        """Frames before repeats are collapsed."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode` expects."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of everything that units depend on, as dataset.json gives it: weights, centroids, windows."""
        ...

    def encode(self, samples: Samples) -> Frames:
        """Units of mono audio: [frames, K]. Raises `UserError` if the audio is not mono."""
        ...

    def encode_batch(self, waveforms: Sequence[Samples]) -> list[Frames]:
        """Units of several waveforms, in order: what `encode` gives for each of them alone."""
        ...


@dataclass(frozen=True)
class DurationPredictor:
    """Predicts how long units last."""

    # Frames [n] of units [n, K], of which none repeats. Raises `UserError` for ids outside the vocabulary, and for a
    # duration that no unit can have.
    predict: Callable[[npt.NDArray[Any]], RunLengths]
    neighbours: int  # units on either side of a unit on which its duration depends


class Vocoder(Protocol):
    """Turns the units of one speech tokenizer into audio."""

    @property
    def name(self) -> str:
        """Kind of vocoder."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        ...

    @property
    def duration_predictor(self) -> DurationPredictor | None:
        """Predicts durations of units; None if the vocoder does not."""
        ...

    def stream(self, frames: npt.NDArray[Any]) -> Iterator[Samples]:
        """Audio of the units [frames, K], repeats included, in pieces whose memory does not grow with the number of
        frames, if the method allows it.

        Raises `UserError`, before the first piece, for ids outside the vocabulary.
        """
        ...


def decode(vocoder: Vocoder, frames: npt.NDArray[Any]) -> Samples:
    """Audio of the units [frames, K] in one array; raises like `Vocoder.stream`."""
    return np.concatenate([np.zeros(0, np.float32), *vocoder.stream(frames)])


def check_mono(samples: Samples) -> None:
    """Raise `UserError` unless the audio has the shape [samples]."""
    if samples.ndim != 1:
        raise UserError(f"audio must be mono, with the shape [samples]; got {samples.shape}")


def check_units(frames: npt.NDArray[Any], num_units: int, num_codebooks: int) -> None:
    """Raise `UserError` unless frames have the shape [frames, num_codebooks] and units of the vocabulary."""
    if frames.ndim != 2 or frames.shape[1] != num_codebooks:
        raise UserError(f"frames of units must have the shape [frames, {num_codebooks}]; got {frames.shape}")
    if frames.size and (int(frames.min()) < 0 or int(frames.max()) >= num_units):
        raise UserError(f"units must be between 0 and {num_units - 1}; got {int(frames.min())} to {int(frames.max())}")


def collapse(frames: npt.NDArray[Any]) -> tuple[Frames, RunLengths]:
    """Merge equal neighbouring frames [frames, K] into units [n, K] and run lengths [n].

    A unit that lasts more than 65,535 frames is split, so that both fit uint16 and `expand` is the exact inverse.
    """
    if frames.ndim != 2:
        raise UserError(f"frames of units must have the shape [frames, codebooks]; got {frames.shape}")
    if frames.size and (int(frames.min()) < 0 or int(frames.max()) > np.iinfo(np.uint16).max):
        raise UserError("units must be between 0 and 65,535; use a tokenizer with fewer units")
    if not len(frames):
        return frames.astype(np.uint16), np.zeros(0, np.uint16)
    starts = np.flatnonzero(np.r_[True, (frames[1:] != frames[:-1]).any(axis=1)])
    lengths = np.diff(np.r_[starts, len(frames)])
    pieces = -(-lengths // LONGEST_RUN)
    units = np.repeat(frames[starts], pieces, axis=0).astype(np.uint16)
    run_lengths = np.full(len(units), LONGEST_RUN, np.int64)
    run_lengths[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    return units, run_lengths.astype(np.uint16)


def expand(units: npt.NDArray[Any], run_lengths: npt.NDArray[Any]) -> Frames:
    """Frames [frames, K] of units [n, K] that last `run_lengths` [n] frames: the inverse of `collapse`."""
    if units.ndim != 2 or run_lengths.shape != units.shape[:1]:
        raise UserError(f"units {units.shape} and run lengths {run_lengths.shape} do not fit: expected [n, K] and [n]")
    return np.repeat(units, run_lengths.astype(np.int64), axis=0).astype(np.uint16)
