"""Random records for realistic interleaved batches: words, spans, switches and segments of typical lengths."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.batch import Batch, collate
from tolktrain.data.records import Array, Record
from tolktrain.data.sequences import Sequence, sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

_TEXT_EOS = 0
_WORDS_PER_UTTERANCE = 16
_TEXT_IDS_PER_WORD = 1.3  # of English in a vocabulary of 49152


@dataclass(frozen=True)
class Speech:
    """The speech side of random records."""

    num_units: int
    num_codebooks: int
    units_per_word: float  # on average, repeats collapsed


def units_per_word(speech_share: float, interleaving: InterleavingConfig, num_codebooks: int) -> float:
    """Units that a spoken word must have on average so that `speech_share` of the positions is speech.

    A pair of spans has S = w_s (u + e) + K - 1 positions of speech and X = w_t (1.3 + e) + 2 of text and switches, for
    w_s and w_t words on average and e utterance ends per word; the share is S / (S + X).

    Raises:
        UserError: words would be shorter than one unit, or the share is none.
    """
    if not 0 < speech_share < 1:
        raise UserError(f"--speech-share {speech_share:g} is no share; use a number between 0 and 1, such as 0.46")
    text_words, speech_words = (sum(words) / 2 for words in (interleaving.text_words, interleaving.speech_words))
    ends = 1 / _WORDS_PER_UTTERANCE
    text = text_words * (_TEXT_IDS_PER_WORD + ends) + 2
    delay = num_codebooks - 1

    def share_of(units: float) -> float:
        speech = speech_words * (units + ends) + delay
        return speech / (speech + text)

    if speech_share < share_of(1):
        raise UserError(
            f"--speech-share {speech_share:g} cannot be made with spans of {text_words:g} words of text and"
            f" {speech_words:g} of speech (data.interleaving); use {math.ceil(100 * share_of(1)) / 100:g} or more"
        )
    return (text * speech_share / (1 - speech_share) - delay) / speech_words - ends


def random_batches(
    count: int,
    batch_size: int,
    sequence_length: int,
    text_vocab_size: int,
    speech: Speech,
    interleaving: InterleavingConfig,
    seed: int,
) -> list[Batch]:
    """Micro batches of interleaved sequences, made of random records by what makes real ones; a function of the seed.

    Args:
        count: micro batches.
        batch_size: sequences of each.
        sequence_length: positions of each sequence.
        text_vocab_size: text ids without specials.
        speech: units and how many a word has.
        interleaving: lengths of spans in words.
        seed: of ids, words and spans.
    """
    source = RandomSequences(sequence_length, text_vocab_size, speech, interleaving, seed)
    return [source.batch(range(first, first + batch_size)) for first in range(0, count * batch_size, batch_size)]


@dataclass(frozen=True)
class RandomSequences:
    """Numbered sequences of random records. A sequence is a function of its number, whichever rank reads it."""

    sequence_length: int  # positions
    text_vocab_size: int  # text ids without specials
    speech: Speech
    interleaving: InterleavingConfig
    seed: int

    def batch(self, numbers: Iterable[int], strategy: Strategy = "interleaved") -> Batch:
        """A micro batch of the sequences with these numbers, built by a strategy that needs no prefix."""
        return collate([self._sequence(number, strategy) for number in numbers])

    def _sequence(self, number: int, strategy: Strategy) -> Sequence:
        speech, length = self.speech, self.sequence_length
        vocabulary = Vocabulary(self.text_vocab_size, _TEXT_EOS, speech.num_units, speech.num_codebooks)
        # Each word is one text id at least, and more than that in speech; the margin lets sequences begin anywhere.
        words = length + length // 2 + _WORDS_PER_UTTERANCE
        name = f"random-{number}"
        record = _record(name, words, self.text_vocab_size, speech, sequence_rng(self.seed, name, 0, "record"))
        rng = sequence_rng(self.seed, name, 0, "sequence")
        return build_sequence(record, strategy, vocabulary, length, self.interleaving, rng)


def _record(name: str, words: int, text_vocab_size: int, speech: Speech, rng: np.random.Generator) -> Record:
    text_ends: Array = np.cumsum(1 + (rng.random(words) < _TEXT_IDS_PER_WORD - 1)).astype(np.uint32)
    unit_ends: Array = np.cumsum(1 + rng.poisson(speech.units_per_word - 1, words)).astype(np.uint32)
    last_words = np.append(np.arange(_WORDS_PER_UTTERANCE, words, _WORDS_PER_UTTERANCE), words) - 1
    units = rng.integers(0, speech.num_units, (int(unit_ends[-1]), speech.num_codebooks))
    return Record(
        id=name,
        source="random",
        text_ids=rng.integers(_TEXT_EOS + 1, text_vocab_size, int(text_ends[-1])).astype(np.uint32),
        units=units.astype(np.uint16),
        run_lengths=np.ones(len(units), np.uint16),
        word_text_ends=text_ends,
        word_unit_ends=unit_ends,
        utterance_text_ends=text_ends[last_words],
        utterance_unit_ends=unit_ends[last_words],
    )
