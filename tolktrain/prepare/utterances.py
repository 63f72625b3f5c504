"""Utterances as a manifest lists them, and the reasons for which an entry is not used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tolktrain.units.base import Samples


@dataclass(frozen=True, slots=True)
class Word:
    """A word and its time, in seconds from the beginning of its utterance."""

    text: str  # without blanks
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest."""

    id: str  # unique in the manifest
    source: str  # the recording, chapter or conversation that the utterance is consecutive in
    speaker: str  # empty where unknown
    audio: str  # path of an audio file
    offset: float = 0.0  # seconds into the file
    duration: float | None = None  # seconds; None: to the end of the file
    channel: int | None = None  # None: the mean of all channels
    text: str | None = None  # as written
    words: tuple[Word, ...] | None = None  # given times
    word_times: str | None = None  # file of given times (.TextGrid, .ctm, .json), in seconds of the *utterance*
    place: str = field(default="", compare=False)  # in the manifest; for messages
    namesake: str | None = field(default=None, compare=False)  # audio of the same name that the CTM file is for too


class Reason(str, Enum):
    """Why an entry was not used; the groups of the summary."""

    MANIFEST = "bad manifest entry"
    AUDIO = "unreadable audio"
    EMPTY = "no sound"
    SILENT = "silent audio"
    CHANNELS = "channels that cancel"
    TEXT = "no usable text"
    WORD_TIMES = "bad word times"
    ALIGNMENT = "not aligned"
    PACE = "impossible words per second"
    SINGLE_UNITS = "words of a single unit"
    CONFIDENCE = "low confidence of the alignment"
    SHORT = "too short"
    RECORD = "no valid record"
    STRATEGY = "not fit for a strategy"


class EntryError(Exception):
    """One entry cannot be used; the others can."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Failure:
    """An entry that was not used: a line of failures.jsonl."""

    id: str  # of the utterance or document; the place in the manifest where it has none
    reason: Reason
    detail: str
    place: str = ""  # in the manifest


@dataclass(frozen=True, eq=False)
class Aligned:
    """The written words of an utterance and when each ends."""

    words: tuple[str, ...]
    ends: npt.NDArray[np.float64]  # [words], seconds from the beginning of the utterance, not falling
    confidence: float | None = None  # 0 to 1; None: the times were given
    spaced: tuple[bool, ...] | None = None  # whether a blank precedes each word in the text; None: each


class Aligner(Protocol):
    """Finds the end of each word."""

    sample_rate: int

    def align(self, waveforms: Sequence[Samples], texts: Sequence[str]) -> "list[Aligned | EntryError]":
        """One result per waveform, in order; an utterance that cannot be aligned gives an error in its place."""
        ...
