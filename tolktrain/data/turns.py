"""Turns of conversations: taken out of a record, and joined to one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tolktrain.data.records import ASSISTANT, SYSTEM, Array, Record, RecordKind

_NO_ENDS = np.zeros(0, np.uint32)


@dataclass(frozen=True, eq=False)
class Turn:
    """What one role says at a time: text, speech or both. Ends are cumulative and exclusive."""

    role: str
    text_ids: Array = field(default_factory=lambda: np.zeros(0, np.uint32))  # [N], without EOS
    units: Array = field(default_factory=lambda: np.zeros((0, 1), np.uint16))  # [n, K], repeats collapsed, without EOS
    run_lengths: Array = field(default_factory=lambda: np.zeros(0, np.uint16))  # [n]
    word_text_ends: Array = field(default_factory=lambda: _NO_ENDS)  # [W], empty where words are not aligned
    word_unit_ends: Array = field(default_factory=lambda: _NO_ENDS)  # [W]

    @property
    def has_text(self) -> bool:
        """Whether the turn has text."""
        return len(self.text_ids) > 0

    @property
    def has_speech(self) -> bool:
        """Whether the turn has speech."""
        return len(self.units) > 0

    @property
    def is_aligned(self) -> bool:
        """Whether words are aligned with the text ids and the units."""
        return len(self.word_text_ends) > 0

    @property
    def is_answer(self) -> bool:
        """Whether it is a turn of the assistant."""
        return self.role == ASSISTANT

    @property
    def is_instruction(self) -> bool:
        """Whether it is a turn of the system."""
        return self.role == SYSTEM


Conversation = Sequence[Turn]


def conversations_of(record: Record) -> list[list[Turn]]:
    """The conversations of a record, as turns."""
    assert record.kind != "passage"
    text, units, words = (
        np.concatenate(([0], ends)).astype(np.int64)
        for ends in (record.utterance_text_ends, record.utterance_unit_ends, record.turn_word_ends)
    )
    turns = [
        Turn(
            record.roles[int(record.turn_roles[number])],
            record.text_ids[text[number] : text[number + 1]],
            record.units[units[number] : units[number + 1]],
            record.run_lengths[units[number] : units[number + 1]],
            record.word_text_ends[words[number] : words[number + 1]].astype(np.int64) - text[number],
            record.word_unit_ends[words[number] : words[number + 1]].astype(np.int64) - units[number],
        )
        for number in range(len(record.turn_roles))
    ]
    ends = [0, *record.conversation_ends.tolist()]
    return [turns[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)]


def record_of(
    identity: str, source: str, conversations: Sequence[Conversation], num_codebooks: int, kind: RecordKind
) -> Record:
    """The record of conversations; of preferences, chosen and rejected ones in turn.

    Args:
        identity: of the record, unique in its set.
        source: where the conversations are from.
        conversations: at least one, each of at least one turn.
        num_codebooks: of the speech of the set.
        kind: "conversation" or "preference".
    """
    turns = [turn for conversation in conversations for turn in conversation]
    assert turns and all(conversations) and kind != "passage"
    roles = tuple(sorted({turn.role for turn in turns}))
    text_ends, unit_ends, word_ends = (
        np.cumsum([len(getattr(turn, name)) for turn in turns]) for name in ("text_ids", "units", "word_text_ends")
    )
    text_begins, unit_begins = (np.concatenate(([0], ends[:-1])) for ends in (text_ends, unit_ends))
    units = [turn.units for turn in turns if turn.has_speech]
    return Record(
        id=identity,
        source=source,
        text_ids=np.concatenate([turn.text_ids for turn in turns]).astype(np.uint32),
        units=(np.concatenate(units) if units else np.zeros((0, num_codebooks))).astype(np.uint16),
        run_lengths=np.concatenate([turn.run_lengths for turn in turns]).astype(np.uint16),
        word_text_ends=_moved([turn.word_text_ends for turn in turns], text_begins),
        word_unit_ends=_moved([turn.word_unit_ends for turn in turns], unit_begins),
        utterance_text_ends=text_ends.astype(np.uint32),
        utterance_unit_ends=unit_ends.astype(np.uint32),
        kind=kind,
        roles=roles,
        turn_roles=np.array([roles.index(turn.role) for turn in turns], np.uint16),
        turn_word_ends=word_ends.astype(np.uint32),
        conversation_ends=np.cumsum([len(conversation) for conversation in conversations]).astype(np.uint32),
    )


def _moved(ends: Sequence[Array], begins: Array) -> Array:
    """Ends of words counted from the beginning of the record."""
    return np.concatenate([words.astype(np.int64) + begin for words, begin in zip(ends, begins, strict=True)]).astype(
        np.uint32
    )
