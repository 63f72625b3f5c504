"""The record: a passage of speech, text or both, or conversations, as in MDS shards; and the description of a set.

This file is the only definition of the schema. A data set folder contains MDS shards, their `index.json`,
and `dataset.json`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.files.writing import replace_file

SCHEMA_VERSION = 1  # of sets of passages
CONVERSATION_VERSION = 2  # of sets of conversations, which older versions of tolktrain cannot read
ASSISTANT = "assistant"
"""The role whose turns are answers."""
USER = "user"
SYSTEM = "system"
"""The role of instructions, which precede a conversation."""

RecordKind = Literal["passage", "conversation", "preference"]
DATASET_FILE = "dataset.json"
LARGEST_VOCABULARY = 1 << 24  # ids; tables have a row for each, used or not
_MOST_CODEBOOKS = 256  # likewise

Array = npt.NDArray[Any]

_TEXT = {"text_ids": "ndarray:uint32", "utterance_text_ends": "ndarray:uint32"}
_SPEECH = {"units": "ndarray:uint16", "run_lengths": "ndarray:uint16", "utterance_unit_ends": "ndarray:uint32"}
_SPEECH_ONLY = ("run_lengths", "utterance_unit_ends")
_ALIGNMENT = {"word_text_ends": "ndarray:uint32", "word_unit_ends": "ndarray:uint32"}
_TURNS = {
    "kind": "str",
    "roles": "str",
    "turn_roles": "ndarray:uint16",
    "conversation_ends": "ndarray:uint32",
}
_TURN_WORDS = {"turn_word_ends": "ndarray:uint32"}


def columns_of(
    text: bool = True, speech: bool = True, aligned: bool = True, kind: RecordKind = "passage"
) -> dict[str, str]:
    """MDS columns of a set with these modalities.

    MDS cannot store empty arrays, so a set without text, speech or word alignment has no such columns at all. Of
    conversations, some may lack what others have: there, each array is stored with a row of zeros before its content.
    """
    assert text or speech, "a record holds text, speech or both"
    assert not aligned or (text and speech), "an alignment needs text and speech"
    columns = {"id": "str", "source": "str"}
    columns |= (_TEXT if text else {}) | (_SPEECH if speech else {}) | (_ALIGNMENT if aligned else {})
    if kind == "passage":
        return columns
    return columns | _TURNS | (_TURN_WORDS if aligned else {})


@dataclass(frozen=True, eq=False)
class Record:
    """One passage: consecutive utterances of one source; or one or several conversations, whose utterances are turns.

    Ends are cumulative and exclusive: word w has the text ids `text_ids[ends[w - 1]:ends[w]]`, including its leading
    space; silence belongs to the word before it. Arrays of an absent modality or alignment are empty. EOS is not
    stored; it is inserted at the utterance ends, which coincide with word ends if words are aligned.

    A turn has text, speech or both, and may have word alignment or not: the ends of turns may be equal, which in a
    passage they are not. Of preferences, each pair of conversations has the same turns except for the last, which is
    the chosen answer in the first of them and the rejected answer in the second.
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
    kind: RecordKind = "passage"
    # Of conversations; else empty.
    roles: tuple[str, ...] = ()  # names
    turn_roles: Array = field(default_factory=lambda: np.zeros(0, np.uint16))  # [U] uint16, numbers of names
    turn_word_ends: Array = field(
        default_factory=lambda: np.zeros(0, np.uint32)
    )  # [U] uint32, words up to a turn's end
    conversation_ends: Array = field(default_factory=lambda: np.zeros(0, np.uint32))  # [C] uint32, in turns

    @classmethod
    def from_sample(cls, sample: Mapping[str, Any]) -> "Record":
        """The record in a sample of an MDS reader."""
        if "turn_roles" in sample:
            return cls(id=sample["id"], source=sample["source"], **_conversation_fields(sample))
        arrays: dict[str, Any] = {name: sample[name] if name in sample else _EMPTY[name] for name in _EMPTY}
        return cls(id=sample["id"], source=sample["source"], **arrays)

    def to_sample(self, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """The sample for an MDS writer whose columns are `columns_of(has_text, has_speech, is_aligned)`.

        `columns` are those of a set of conversations, of which this one need not have all modalities.
        """
        if self.kind != "passage":
            names = columns or columns_of(self.has_text, self.has_speech, self.is_aligned, self.kind)
            return {name: self._stored(name) for name in names}
        sample: dict[str, Any] = {"id": self.id, "source": self.source}
        for name in columns_of(self.has_text, self.has_speech, self.is_aligned):
            if name not in sample:
                sample[name] = np.ascontiguousarray(getattr(self, name), _EMPTY[name].dtype)
        return sample

    def _stored(self, name: str) -> Any:
        """A column of a conversation."""
        value = getattr(self, name)
        if name == "roles":
            return json.dumps(value)
        if isinstance(value, str):
            return value
        dtype = _TYPES[name]
        return np.concatenate((np.zeros((1, *value.shape[1:]), dtype), value.astype(dtype)))

    @property
    def has_text(self) -> bool:
        """Whether the record has text."""
        return len(self.text_ids) > 0

    @property
    def has_speech(self) -> bool:
        """Whether the record has speech."""
        return len(self.units) > 0

    @property
    def is_aligned(self) -> bool:
        """Whether words are aligned with the text ids and the units."""
        return len(self.word_text_ends) > 0

    @property
    def num_utterances(self) -> int:
        """Utterances of the passage, or turns."""
        return max(len(self.utterance_text_ends), len(self.utterance_unit_ends))

    def check(self, text_vocab_size: int | None, num_units: int | None, num_codebooks: int = 1) -> None:
        """Raise `UserError` unless the arrays are consistent with each other and the vocabularies (None: absent)."""
        if self.kind != "passage":
            self._check_conversations(text_vocab_size, num_units, num_codebooks)
            return
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

    def _check_conversations(self, text_vocab_size: int | None, num_units: int | None, num_codebooks: int) -> None:
        num_turns = len(self.turn_roles)
        if self.kind not in ("conversation", "preference") or not num_turns:
            raise self._error(f"it has {num_turns} turns and the kind {self.kind!r}; expected turns of conversations")
        if len(set(self.roles)) != len(self.roles) or int(self.turn_roles.max()) >= len(self.roles):
            raise self._error(f"turn_roles must be numbers of the roles {', '.join(self.roles)}, each named once")
        self._check_ends("conversation_ends", self.conversation_ends, num_turns, "turns")
        if self.has_text:
            self._check_ids("text_ids", self.text_ids, text_vocab_size, "text vocabulary")
        if self.has_speech:
            if self.units.ndim != 2 or self.units.shape[1] != num_codebooks:
                raise self._error(f"units have the shape {self.units.shape}; expected [n, {num_codebooks}]")
            self._check_ids("units", self.units, num_units, "speech vocabulary")
        if self.run_lengths.shape != self.units.shape[:1] or (self.has_speech and int(self.run_lengths.min()) < 1):
            raise self._error("run_lengths must give a positive number of frames for each row of units")
        lengths = {
            "utterance_text_ends": len(self.text_ids),
            "utterance_unit_ends": len(self.units),
            "turn_word_ends": len(self.word_text_ends),
        }
        for name, total in lengths.items():
            ends = getattr(self, name).astype(np.int64)
            if len(ends) != num_turns or int(ends[-1]) != total or bool((np.diff(ends, prepend=0) < 0).any()):
                raise self._error(f"{name} must have an end for each turn, not falling, the last of which is {total}")
        sizes = [np.diff(getattr(self, name).astype(np.int64), prepend=0) for name in lengths]
        if not bool(((sizes[0] > 0) | (sizes[1] > 0)).all()):
            raise self._error("a turn has neither text nor speech")
        if len(self.word_unit_ends) != len(self.word_text_ends):
            raise self._error("word_text_ends and word_unit_ends differ in length")
        for turn in np.flatnonzero(sizes[2]):
            self._check_turn_words(int(turn))
        if self.kind == "preference":
            self._check_pairs()

    def _check_turn_words(self, turn: int) -> None:
        end = int(self.turn_word_ends[turn])
        begin = int(self.turn_word_ends[turn - 1]) if turn else 0
        for words, turns in (
            (self.word_text_ends, self.utterance_text_ends),
            (self.word_unit_ends, self.utterance_unit_ends),
        ):
            ends = np.concatenate((turns[turn - 1 : turn] if turn else [0], words[begin:end])).astype(np.int64)
            if int(ends[-1]) != int(turns[turn]) or bool((np.diff(ends) < 1).any()):
                raise self._error(f"the words of turn {turn} must rise strictly to the end of the turn")

    def _check_pairs(self) -> None:
        ends = [0, *self.conversation_ends.tolist()]
        pairs = list(zip(ends[:-1:2], ends[1::2], ends[2::2], strict=False))
        if len(ends) % 2 == 0:
            raise self._error("preferences have an even number of conversations: chosen, then rejected")
        for begin, middle, end in pairs:
            if not np.array_equal(self.turn_roles[begin:middle], self.turn_roles[middle:end]):
                raise self._error("a chosen and a rejected conversation have turns of other roles")
            if self.roles[int(self.turn_roles[end - 1])] != ASSISTANT:
                raise self._error(f"a preference must end with a turn of the role {ASSISTANT}")

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
_TYPES: Mapping[str, Any] = MappingProxyType(
    {name: value.dtype for name, value in _EMPTY.items()}
    | {"turn_roles": np.uint16, "turn_word_ends": np.uint32, "conversation_ends": np.uint32}
)


def _conversation_fields(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the record in a sample of conversations, whose arrays begin with a row of zeros."""
    try:
        roles = tuple(map(str, json.loads(sample["roles"])))
    except (ValueError, TypeError):
        raise UserError(f"record {sample['id']!r}: its roles are not a JSON list; rebuild the data set") from None
    if sample["kind"] not in ("conversation", "preference"):
        raise UserError(f"record {sample['id']!r}: its kind {sample['kind']!r:.40} is unknown; rebuild the data set")
    arrays = {name: sample[name][1:] for name in _TYPES if name in sample}
    no_ends = np.zeros(len(arrays["turn_roles"]), np.uint32)
    for name in ("utterance_text_ends", "utterance_unit_ends", "turn_word_ends"):
        arrays.setdefault(name, no_ends)
    return {**_EMPTY, **arrays, "kind": sample["kind"], "roles": roles}


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


class ConversationInfo(_Description):
    """What is particular to a set of conversations or preferences."""

    kind: Literal["conversation", "preference"] = Field(description="Kind of the records.")
    roles: tuple[str, ...] = Field(strict=False, description="Roles of the turns; each is a special token.")
    strategies: tuple[str, ...] = Field(strict=False, description="Strategies that each record serves.")
    sequence_length: int = Field(
        gt=0, description="Positions of a sequence for which conversations were packed into records."
    )
    num_conversations: int = Field(ge=0, description="Conversations; of preferences, two for each.")
    num_turns: int = Field(ge=0, description="Turns.")


class DatasetInfo(_Description):
    """The content of `dataset.json`: the description of a set of records."""

    schema_version: int = Field(
        default=SCHEMA_VERSION, description="Version of the record schema: 1 for passages, 2 for conversations."
    )
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
    conversations: ConversationInfo | None = Field(default=None, description="Of a set of conversations.")

    @property
    def kind(self) -> RecordKind:
        """Kind of the records."""
        return "passage" if self.conversations is None else self.conversations.kind

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
        if version not in (SCHEMA_VERSION, CONVERSATION_VERSION):
            raise UserError(
                f"{path}: schema_version is {version!r}, but this version of tolktrain reads {SCHEMA_VERSION} and"
                f" {CONVERSATION_VERSION};"
                " rebuild the data set or use the matching version of tolktrain"
            )
        try:
            info = cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UserError(
                f"{path} is not a valid description of a data set ({problems}); rebuild the data set"
            ) from None
        if (info.conversations is not None) != (version == CONVERSATION_VERSION):
            raise UserError(
                f"{path}: schema_version {CONVERSATION_VERSION} and `conversations` belong together; rebuild the data"
                " set"
            )
        return info

    def to_json(self) -> str:
        """The content of `dataset.json`."""
        return json.dumps(self.model_dump(), indent=2) + "\n"

    @model_serializer(mode="wrap")
    def _without_absent_conversations(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Descriptions of passages are those of version 1."""
        content: dict[str, Any] = serialize(self)
        if self.conversations is None:
            content.pop("conversations", None)
        return content

    def write(self, folder: str | Path) -> None:
        """Write `dataset.json` into a data set folder, atomically."""
        replace_file(Path(folder) / DATASET_FILE, self.to_json())
