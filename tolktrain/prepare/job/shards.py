"""Writing records as MDS shards, counting them, and describing a set of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tolktrain.config.data import Strategy
from tolktrain.data.records import (
    CONVERSATION_VERSION,
    SCHEMA_VERSION,
    ConversationInfo,
    DatasetInfo,
    Record,
    SpeechInfo,
    TextInfo,
    columns_of,
)
from tolktrain.files.writing import naming
from tolktrain.units.base import SpeechTokenizer

SHARD_BYTES = 1 << 20  # before compression
COMPRESSION = "zstd:19"
HASHES = ("sha1", "xxh64")


@dataclass(frozen=True)
class Packing:
    """How conversations are packed into records."""

    kind: Literal["conversation", "preference"]
    strategies: tuple[Strategy, ...]  # that each conversation serves
    sequence_length: int  # positions of a sequence


class Counts(BaseModel):
    """The counts of a set of records."""

    model_config = ConfigDict(extra="forbid")

    num_records: int = Field(default=0, ge=0, description="Records.")
    num_utterances: int = Field(default=0, ge=0, description="Utterances or documents.")
    num_words: int = Field(default=0, ge=0, description="Aligned words.")
    num_text_tokens: int = Field(default=0, ge=0, description="Text ids, without EOS.")
    num_units: int = Field(default=0, ge=0, description="Rows of units, repeats collapsed, without EOS.")
    num_frames: int = Field(default=0, ge=0, description="Frames, repeats counted.")
    longest_text: int = Field(default=0, ge=0, description="Most text ids in a record, with one EOS per utterance.")
    longest_speech: int = Field(default=0, ge=0, description="Most rows of units in a record, with EOS.")
    num_conversations: int = Field(default=0, ge=0, description="Conversations.")
    roles: tuple[str, ...] = Field(default=(), strict=False, description="Roles of turns.")

    def add(self, record: Record) -> None:
        """Count one more record."""
        text, speech = len(record.text_ids), len(record.units)
        self.num_records += 1
        self.num_utterances += record.num_utterances
        self.num_words += len(record.word_text_ends)
        self.num_text_tokens += text
        self.num_units += speech
        self.num_frames += int(record.run_lengths.astype(np.int64).sum())
        self.longest_text = max(self.longest_text, text + len(record.utterance_text_ends))
        self.longest_speech = max(self.longest_speech, speech + len(record.utterance_unit_ends))
        self.num_conversations += len(record.conversation_ends)
        self.roles = tuple(sorted({*self.roles, *record.roles}))

    def join(self, other: "Counts") -> None:
        """Count the records of another part too."""
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "roles":
                self.roles = tuple(sorted({*mine, *theirs}))
                continue
            setattr(self, name, max(mine, theirs) if name.startswith("longest") else mine + theirs)

    def hours(self, speech: SpeechInfo | None) -> float:
        """Duration of the speech."""
        return self.num_frames / speech.frames_per_second / 3600 if speech else 0.0

    def describe(
        self,
        *,
        name: str,
        split: str,
        license: str,
        text: TextInfo | None,
        speech: SpeechInfo | None,
        packing: Packing | None = None,
    ) -> DatasetInfo:
        """The content of dataset.json; `packing` of conversations."""
        conversations = None
        if packing is not None:
            conversations = ConversationInfo(
                kind=packing.kind,
                roles=self.roles,
                strategies=packing.strategies,
                sequence_length=packing.sequence_length,
                num_conversations=self.num_conversations,
                num_turns=self.num_utterances,
            )
        return DatasetInfo(
            schema_version=SCHEMA_VERSION if packing is None else CONVERSATION_VERSION,
            conversations=conversations,
            name=name,
            split=split,
            license=license,
            num_records=self.num_records,
            num_words=self.num_words,
            num_text_tokens=self.num_text_tokens,
            num_units=self.num_units,
            hours=round(self.hours(speech), 4),
            longest_text=self.longest_text,
            longest_speech=self.longest_speech,
            text=text,
            speech=speech,
        )


def speech_info(tokenizer: SpeechTokenizer) -> SpeechInfo:
    """The speech side of dataset.json."""
    return SpeechInfo(
        name=tokenizer.name,
        version=tokenizer.version,
        num_units=tokenizer.num_units,
        num_codebooks=tokenizer.num_codebooks,
        frames_per_second=tokenizer.frames_per_second,
        sha256=tokenizer.sha256,
    )


def check_record(record: Record, text: TextInfo | None, speech: SpeechInfo | None) -> None:
    """Raise `UserError` if a record does not fit the vocabularies of its set."""
    record.check(
        text.vocab_size if text else None, speech.num_units if speech else None, speech.num_codebooks if speech else 1
    )


class ShardWriter:
    """Writes records as MDS shards with hashes, and in the end index.json, into a folder.

    `add` and `finish` raise OSError naming the folder where the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        columns: dict[str, str],
        shard_bytes: int = SHARD_BYTES,
        compression: str | None = COMPRESSION,
    ) -> None:
        from tolktrain.libraries.streaming import MDSWriter

        self.folder = folder
        self.columns = tuple(columns)
        self.counts = Counts()
        self._writer = MDSWriter(
            out=str(folder),
            columns=columns,
            compression=compression,
            hashes=list(HASHES),
            size_limit=shard_bytes,
            exist_ok=False,
        )

    def add(self, record: Record) -> None:
        """Write one more record."""
        with naming(self.folder):
            self._writer.write(record.to_sample(self.columns))
        self.counts.add(record)

    def finish(self) -> Counts:
        """Write what is left and index.json; what all records amount to."""
        with naming(self.folder):
            self._writer.finish()
        return self.counts


def write_dataset(
    folder: Path,
    records: Sequence[Record],
    *,
    name: str,
    split: str,
    license: str,
    text: TextInfo | None,
    speech: SpeechInfo | None,
    packing: Packing | None = None,
) -> DatasetInfo:
    """Check the records, write them as MDS shards with hashes, and describe them; dataset.json comes last.

    All records have the same modalities; `packing` is that of conversations. Raises `UserError` if a record does not
    fit the vocabularies.
    """
    assert records, "a data set has at least one record"
    for record in records:
        check_record(record, text, speech)
    first = records[0]
    columns = columns_of(first.has_text, first.has_speech, first.is_aligned, first.kind)
    writer = ShardWriter(folder, columns)
    for record in records:
        writer.add(record)
    info = writer.finish().describe(name=name, split=split, license=license, text=text, speech=speech, packing=packing)
    info.write(folder)
    return info
