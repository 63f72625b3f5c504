"""Speech alone."""

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.sequences import SequenceWriter, begin_of_part, part_offsets, random_start, units_with_eos
from tolktrain.data.strategies.base import SequenceStrategy


class SpeechOnly(SequenceStrategy):
    """Speech alone."""

    needs_text = False
    scores = ("speech",)

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Start at the begin of a word, if words are aligned."""
        units = units_with_eos(record, writer.vocabulary)
        start = random_start(len(units), writer.size, rng)
        if record.is_aligned:
            start = begin_of_part(part_offsets(record.word_unit_ends, record.utterance_unit_ends), start)
        writer.speech(units[start : start + writer.size])

    def longest(self, info: DatasetInfo) -> int:
        """Tokens of the longest record."""
        return info.longest_speech


STRATEGY = SpeechOnly()
