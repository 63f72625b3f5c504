"""Small random data sets of preferences: answers in text, in speech and interleaved, one or several pairs a record."""

from pathlib import Path

import numpy as np
from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, describe
from streaming import MDSWriter

from tolktrain.data.records import CONVERSATION_VERSION, Array, ConversationInfo, Record, columns_of
from tolktrain.data.strategies.preference import Preference
from tolktrain.data.turns import Turn, record_of
from tolktrain.vocabulary import Vocabulary

TOKENS = ("<|user|>", "<|assistant|>")


def _turn(rng: np.random.Generator, role: str, form: str, num_codebooks: int) -> Turn:
    words = int(rng.integers(1, 3))
    text_ends, unit_ends = (np.cumsum(rng.integers(1, 3, words)) for _ in range(2))

    def ids(low: int, high: int, shape: tuple[int, ...]) -> Array:
        return rng.integers(low, high, shape)

    none = np.zeros(0, np.uint32)
    num_text = int(text_ends[-1]) if form != "speech" else 0
    num_units = int(unit_ends[-1]) if form != "text" else 0
    aligned = form == "interleaved"
    return Turn(
        role,
        ids(1, TEXT_VOCAB_SIZE, (num_text,)).astype(np.uint32),
        ids(0, NUM_UNITS, (num_units, num_codebooks)).astype(np.uint16),
        np.ones(num_units, np.uint16),
        text_ends.astype(np.uint32) if aligned else none,
        unit_ends.astype(np.uint32) if aligned else none,
    )


def random_preferences(count: int, seed: int, sequence_length: int, num_codebooks: int = 1) -> list[Record]:
    """Records named p0000, p0001, ..., each with as many pairs as fit."""
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS, num_codebooks, TOKENS)
    records = []
    for number in range(count):
        conversations: list[list[Turn]] = []
        left = sequence_length + 1
        while not conversations or left > 0:
            prompt = _turn(rng, "user", str(rng.choice(["text", "speech"])), num_codebooks)
            form = str(rng.choice(["text", "speech", "interleaved"]))
            pair = [[prompt, _turn(rng, "assistant", form, num_codebooks)] for _ in range(2)]
            left -= Preference().most_tokens(pair, vocabulary)
            if left >= 0:
                conversations += pair
        records.append(record_of(f"p{number:04}", "here", conversations, num_codebooks, "preference"))
    return records


def write_preferences(folder: Path, records: list[Record], sequence_length: int) -> Path:
    """Write a data set folder."""
    columns = columns_of(True, True, True, "preference")
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 14, hashes=["sha1", "xxh64"]) as writer:
        for record in records:
            writer.write(record.to_sample(columns))
    conversations = ConversationInfo(
        kind="preference",
        roles=("assistant", "user"),
        strategies=("preference",),
        sequence_length=sequence_length,
        num_conversations=sum(len(record.conversation_ends) for record in records),
        num_turns=sum(len(record.turn_roles) for record in records),
    )
    both = sorted(records, key=lambda record: not (record.has_text and record.has_speech))  # the first is described
    described = {"schema_version": CONVERSATION_VERSION, "conversations": conversations}
    describe(both).model_copy(update=described).write(folder)
    return folder
