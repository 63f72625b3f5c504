"""Text alone."""

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.sequences import SequenceWriter, begin_of_part, part_offsets, random_start, text_with_eos
from tolktrain.data.strategies.base import SequenceStrategy


class TextOnly(SequenceStrategy):
    """Text alone."""

    needs_speech = False
    scores = ("text",)

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Start at the begin of a word, if words are aligned."""
        ids = text_with_eos(record, writer.vocabulary)
        start = random_start(len(ids), writer.size, rng)
        if record.is_aligned:
            start = begin_of_part(part_offsets(record.word_text_ends, record.utterance_text_ends), start)
        writer.text(ids[start : start + writer.size])

    def longest(self, info: DatasetInfo) -> int:
        """Tokens of the longest record."""
        return info.longest_text


STRATEGY = TextOnly()
