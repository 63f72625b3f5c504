"""Text and speech in turn, word by word (arXiv 2503.06211, section 4)."""

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.sequences import IntArray, SequenceWriter, part_offsets, random_start, text_with_eos, units_with_eos
from tolktrain.data.strategies.base import SequenceStrategy


class Interleaved(SequenceStrategy):
    """Text and speech in turn, word by word (arXiv 2503.06211, section 4)."""

    needs_alignment = True
    scores = ("text", "speech")

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Write alternating spans of text and speech, with a switch between them.

        A span ends after its drawn number of words, at the end of the record, or when the sequence is full. The end of
        an utterance adds EOS to the span, but does not end it.
        """
        text, units = text_with_eos(record, writer.vocabulary), units_with_eos(record, writer.vocabulary)
        text_offsets = part_offsets(record.word_text_ends, record.utterance_text_ends)
        unit_offsets = part_offsets(record.word_unit_ends, record.utterance_unit_ends)
        num_words = len(record.word_text_ends)
        first_is_speech = bool(rng.integers(2))
        # Each word has at least one token, so no more than `size` words fit.
        boundaries = span_boundaries(min(num_words, writer.size), first_is_speech, interleaving, rng)

        def layout(start: int) -> tuple[IntArray, IntArray]:
            """Words that bound the spans after a first word, and the tokens up to the end of each span."""
            words = np.minimum(boundaries + start, num_words)
            words = words[: int(np.searchsorted(words, num_words)) + 1]
            lengths = np.diff(text_offsets[words]) + 1
            begins_speech = 0 if first_is_speech else 1
            lengths[begins_speech::2] = np.diff(unit_offsets[words])[begins_speech::2] + 1 + writer.delay
            return words, np.cumsum(lengths) - 1

        mean_offsets = (text_offsets + unit_offsets) // 2
        row = random_start(int(mean_offsets[-1]), writer.size, rng)
        start = int(np.searchsorted(mean_offsets[:-1], row, side="right")) - 1
        words, ends = layout(start)
        while start > 0 and ends[-1] < writer.size:
            missing_words = int(writer.size - ends[-1]) * num_words // int(mean_offsets[-1])
            start = max(start - max(missing_words, 1), 0)
            words, ends = layout(start)

        num_spans = min(int(np.searchsorted(ends, writer.size)) + 1, len(ends))
        for span in range(num_spans):
            if span:
                writer.special(writer.vocabulary.switch)
            first, last = words[span], words[span + 1]
            if (span % 2 == 0) == first_is_speech:
                writer.speech(units[unit_offsets[first] : unit_offsets[last]])
            else:
                writer.text(text[text_offsets[first] : text_offsets[last]])

    def longest(self, info: DatasetInfo) -> int:
        """Tokens of the longest record."""
        return max(info.longest_text, info.longest_speech)


def span_boundaries(
    num_words: int, first_is_speech: bool, interleaving: InterleavingConfig, rng: np.random.Generator
) -> IntArray:
    """Cumulative words of alternating spans, from 0 to at least `num_words`."""
    (text_low, text_high), (speech_low, speech_high) = interleaving.text_words, interleaving.speech_words
    num_pairs = num_words // (text_low + speech_low) + 1
    boundaries = np.zeros(2 * num_pairs + 1, np.int64)
    speech_slot = 1 if first_is_speech else 2
    boundaries[speech_slot::2] = rng.integers(speech_low, speech_high + 1, num_pairs)
    boundaries[3 - speech_slot :: 2] = rng.integers(text_low, text_high + 1, num_pairs)
    return np.cumsum(boundaries)


STRATEGY = Interleaved()
