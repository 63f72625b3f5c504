"""The record: one passage of speech, text or both, as stored in MDS shards; and the description of a set of records.

This file is the only definition of the schema. A data set folder contains MDS shards, their `index.json`,
and `dataset.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.files.writing import replace_file

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
LARGEST_VOCABULARY = 1 << 24  # ids; tables have a row for each, used or not
_MOST_CODEBOOKS = 256  # likewise

Array = npt.NDArray[Any]

_TEXT = {"text_ids": "ndarray:uint32", "utterance_text_ends": "ndarray:uint32"}
_SPEECH = {"units": "ndarray:uint16", "run_lengths": "ndarray:uint16", "utterance_unit_ends": "ndarray:uint32"}
_SPEECH_ONLY = ("run_lengths", "utterance_unit_ends")
_ALIGNMENT = {"word_text_ends": "ndarray:uint32", "word_unit_ends": "ndarray:uint32"}


def columns_of(text: bool = True, speech: bool = True, aligned: bool = True) -> dict[str, str]:
    """MDS columns of a set with these modalities.

    MDS cannot store empty arrays, so a set without text, speech or word alignment has no such columns at all.
    """
    assert text or speech, "a record holds text, speech or both"
    assert not aligned or (text and speech), "an alignment needs text and speech"
    columns = {"id": "str", "source": "str"}
    return columns | (_TEXT if text else {}) | (_SPEECH if speech else {}) | (_ALIGNMENT if aligned else {})


@dataclass(frozen=True, eq=False)
class Record:
    """One passage: consecutive utterances of one source.

    Ends are cumulative and exclusive: word w has the text ids `text_ids[ends[w - 1]:ends[w]]`, including its leading
    space; silence belongs to the word before it. Arrays of an absent modality or alignment are empty. EOS is not
    stored; it is inserted at the utterance ends, which coincide with word ends if words are aligned.
    """

    id: str
    source: str  # speaker or voice
    text_ids: Array  # [N] uint32
    units: Array  # [n, K] uint16, repeats collapsed
    run_lengths: Array  # [n] uint16, frames that each row of units lasts
    word_text_ends: Array  # [W] uint32
    word_unit_ends: Array  # [W] uint32
    utterance_text_ends: Array  # [U] uint32
    utterance_unit_ends: Array  # [U] uint32

    @classmethod
    def from_sample(cls, sample: Mapping[str, Any]) -> "Record":
        """The record in a sample of an MDS reader."""
        arrays = {name: sample[name] if name in sample else _EMPTY[name] for name in _EMPTY}
        return cls(id=sample["id"], source=sample["source"], **arrays)

    def to_sample(self) -> dict[str, Any]:
        """The sample for an MDS writer whose columns are `columns_of(has_text, has_speech, is_aligned)`."""
        sample: dict[str, Any] = {"id": self.id, "source": self.source}
        for name in columns_of(self.has_text, self.has_speech, self.is_aligned):
            if name not in sample:
                sample[name] = np.ascontiguousarray(getattr(self, name), _EMPTY[name].dtype)
        return sample

    @property
    def has_text(self) -> bool:
        """Whether the passage has text."""
        return len(self.text_ids) > 0

    @property
    def has_speech(self) -> bool:
        """Whether the passage has speech."""
        return len(self.units) > 0

    @property
    def is_aligned(self) -> bool:
        """Whether words are aligned with the text ids and the units."""
        return len(self.word_text_ends) > 0

    @property
    def num_utterances(self) -> int:
        """Utterances of the passage."""
        return max(len(self.utterance_text_ends), len(self.utterance_unit_ends))

    def check(self, text_vocab_size: int | None, num_units: int | None, num_codebooks: int = 1) -> None:
        """Raise `UserError` unless the arrays are consistent with each other and the vocabularies (None: absent)."""
        if not self.has_text and not self.has_speech:
            raise self._error("it holds neither text nor speech")
        for present, absent in ((self.has_text, ("utterance_text_ends",)), (self.has_speech, _SPEECH_ONLY)):
            stray = [name for name in absent if not present and len(getattr(self, name))]
            if stray:
                raise self._error(f"it has {stray[0]}, but nothing that they could belong to")
        if self.has_text:
            self._check_ids("text_ids", self.text_ids, text_vocab_size, "text vocabulary")
            self._check_ends("utterance_text_ends", self.utterance_text_ends, len(self.text_ids), "text ids")
        if self.has_speech:
            if self.units.ndim != 2 or self.units.shape[1] != num_codebooks:
                raise self._error(f"units have the shape {self.units.shape}; expected [n, {num_codebooks}]")
            self._check_ids("units", self.units, num_units, "speech vocabulary")
            if self.run_lengths.shape != self.units.shape[:1] or int(self.run_lengths.min()) < 1:
                raise self._error("run_lengths must give a positive number of frames for each row of units")
            self._check_ends("utterance_unit_ends", self.utterance_unit_ends, len(self.units), "units")
        if self.has_text and self.has_speech and len(self.utterance_text_ends) != len(self.utterance_unit_ends):
            raise self._error("utterance_text_ends and utterance_unit_ends differ in length")
        if self.is_aligned or len(self.word_unit_ends):
            self._check_alignment()

    def _check_alignment(self) -> None:
        if len(self.word_text_ends) != len(self.word_unit_ends):
            raise self._error("word_text_ends and word_unit_ends differ in length")
        self._check_ends("word_text_ends", self.word_text_ends, len(self.text_ids), "text ids")
        self._check_ends("word_unit_ends", self.word_unit_ends, len(self.units), "units")
        text_words = np.searchsorted(self.word_text_ends, self.utterance_text_ends)
        unit_words = np.searchsorted(self.word_unit_ends, self.utterance_unit_ends)
        coincide = np.array_equal(self.word_text_ends[text_words], self.utterance_text_ends) and np.array_equal(
            self.word_unit_ends[unit_words], self.utterance_unit_ends
        )
        if not coincide or not np.array_equal(text_words, unit_words):
            raise self._error("utterances must end where a word ends, at the same word in text and speech")

    def _check_ids(self, name: str, ids: Array, size: int | None, vocabulary: str) -> None:
        if size is None:
            raise self._error(f"it has {name}, but dataset.json declares no {vocabulary}")
        if int(ids.max()) >= size:
            raise self._error(
                f"{name} holds {int(ids.max())}, which is outside the {vocabulary} of {size} ids;"
                " rebuild the data set with the tokenizer that dataset.json names"
            )

    def _check_ends(self, name: str, ends: Array, total: int, what: str) -> None:
        if not len(ends) or int(ends[-1]) != total or int(ends[0]) < 1 or bool((ends[1:] <= ends[:-1]).any()):
            raise self._error(f"{name} must rise strictly from at least 1 to the number of {what}, {total}")

    def _error(self, problem: str) -> UserError:
        return UserError(f"record {self.id!r}: {problem}")


_EMPTY: Mapping[str, Array] = MappingProxyType(
    {
        "text_ids": np.zeros(0, np.uint32),
        "units": np.zeros((0, 1), np.uint16),
        "run_lengths": np.zeros(0, np.uint16),
        "word_text_ends": np.zeros(0, np.uint32),
        "word_unit_ends": np.zeros(0, np.uint32),
        "utterance_text_ends": np.zeros(0, np.uint32),
        "utterance_unit_ends": np.zeros(0, np.uint32),
    }
)


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextInfo(_Description):
    """The text side of a set of records."""

    vocab_size: int = Field(gt=0, le=LARGEST_VOCABULARY, description="Text ids, without the model's special ids.")
    eos_id: int = Field(ge=0, description="Id that ends an utterance.")
    sha256: str = Field(description="Digest of the tokenizer file.")


class SpeechInfo(_Description):
    """The speech side of a set of records."""

    name: str = Field(description="Speech tokenizer.")
    version: str = Field(description="Version of the speech tokenizer.")
    num_units: int = Field(gt=0, le=1 << 16, description="Units of one codebook.")
    num_codebooks: int = Field(default=1, gt=0, le=_MOST_CODEBOOKS, description="Codebooks per frame.")
    frames_per_second: float = Field(gt=0, lt=1e6, description="Frames before repeats are collapsed.")
    sha256: str = Field(description="Digest of the tokenizer's weights.")


class DatasetInfo(_Description):
    """The content of `dataset.json`: the description of a set of records."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of the record schema.")
    name: str = Field(description="Name of the set.")
    split: str = Field(description="Part of the corpus.")
    license: str = Field(description="Licence of the records.")
    num_records: int = Field(ge=0, description="Records.")
    num_words: int = Field(ge=0, description="Words.")
    num_text_tokens: int = Field(ge=0, description="Text ids, without EOS.")
    num_units: int = Field(ge=0, description="Rows of units, repeats collapsed, without EOS.")
    hours: float = Field(ge=0, description="Duration of the speech.")
    longest_text: int = Field(ge=0, description="Most text ids in a record, with one EOS per utterance.")
    longest_speech: int = Field(ge=0, description="Most rows of units in a record, with one EOS per utterance.")
    text: TextInfo | None = Field(default=None, description="Text tokenizer; absent without text.")
    speech: SpeechInfo | None = Field(default=None, description="Speech tokenizer; absent without speech.")

    @classmethod
    def read(cls, folder: str | Path) -> "DatasetInfo":
        """Read `dataset.json` of a data set folder. Raises `UserError` with the file and the mistake."""
        path = Path(folder) / DATASET_FILE
        try:
            content = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; a data set folder needs it next to index.json") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable JSON ({error}); rebuild the data set") from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version is {version!r}, but this version of tolktrain reads {SCHEMA_VERSION};"
                " rebuild the data set or use the matching version of tolktrain"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UserError(
                f"{path} is not a valid description of a data set ({problems}); rebuild the data set"
            ) from None

    def to_json(self) -> str:
        """The content of `dataset.json`."""
        return json.dumps(self.model_dump(), indent=2) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write `dataset.json` into a data set folder, atomically."""
        replace_file(Path(folder) / DATASET_FILE, self.to_json())
