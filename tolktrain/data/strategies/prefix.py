"""Recognition and synthesis: a condition in one modality, then the target in the other."""

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.sequences import IntArray, SequenceWriter, part_offsets, random_start, text_with_eos, units_with_eos
from tolktrain.data.strategies.base import SequenceStrategy


class PrefixStrategy(SequenceStrategy):
    """Consecutive utterances, each as prefix-begin, condition, prefix-end, target, EOS."""

    always_evaluated = False

    def __init__(self, speech_first: bool) -> None:
        self._speech_first = speech_first

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Write whole utterances, from a random one on."""
        text, units = text_with_eos(record, writer.vocabulary), units_with_eos(record, writer.vocabulary)
        text_offsets = part_offsets(record.utterance_text_ends, record.utterance_text_ends)
        unit_offsets = part_offsets(record.utterance_unit_ends, record.utterance_unit_ends)
        # The condition has no EOS; two specials and the codebook delay are added.
        lengths = np.diff(text_offsets) + np.diff(unit_offsets) + 1 + writer.delay
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        first = _first_utterance(offsets, writer.size, rng)
        for utterance in range(first, len(lengths)):
            if writer.length == writer.size:
                break
            text_begin, text_end = text_offsets[utterance], text_offsets[utterance + 1]
            unit_begin, unit_end = unit_offsets[utterance], unit_offsets[utterance + 1]
            writer.special(writer.vocabulary.prefix_begin)
            if self._speech_first:
                writer.speech(units[unit_begin : unit_end - 1], scored=False)
                writer.special(writer.vocabulary.prefix_end)
                writer.text(text[text_begin:text_end])
            else:
                writer.text(text[text_begin : text_end - 1], scored=False)
                writer.special(writer.vocabulary.prefix_end)
                writer.speech(units[unit_begin:unit_end])

    def longest(self, info: DatasetInfo) -> int:
        """Tokens of the longest record."""
        return info.longest_text + info.longest_speech


def _first_utterance(offsets: IntArray, size: int, rng: np.random.Generator) -> int:
    """A random utterance that fits into `size` tokens, if there is one, followed by `size` tokens, if possible."""
    fitting = np.flatnonzero(np.diff(offsets) <= size)
    if not len(fitting):
        fitting = np.arange(len(offsets) - 1)
    row = random_start(int(offsets[-1]), size, rng)
    return int(fitting[max(int(np.searchsorted(offsets[fitting], row, side="right")) - 1, 0)])
