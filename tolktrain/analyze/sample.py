"""The sample: aligned words of held-out records, each read in its passage as text and as speech; and spans of words.

A passage is a window of consecutive words of a record that fits into the model's sequences in both modalities. It
becomes two sequences, EOS and the words as text, and EOS and the same words as speech. Everything that measures need to
know about a word is determined here, before the first forward pass, so that no result depends on how passages are
batched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import Record
from tolktrain.data.sequences import IntArray, SequenceWriter, sequence_rng
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.data.strategies import build_sequence
from tolktrain.errors import UserError
from tolktrain.evaluate.choices import RecordWords
from tolktrain.vocabulary import Vocabulary

SPAN_WORDS = 3
FEWEST_WORDS = 64  # with fewer, no measure says anything
NONE = -1  # instead of an id


@dataclass(frozen=True, eq=False)
class Passage:
    """Words of a record in both modalities, and the interleaved sequence of the record."""

    text: TokenSequence
    speech: TokenSequence
    interleaved: TokenSequence
    text_ends: IntArray  # [n] position of the last token of each word
    speech_ends: IntArray  # [n] position of the last unit of each word, in the first codebook
    words: IntArray  # [n] their numbers in the sample


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive words, and each of them alone; each sequence is EOS and the words."""

    text: tuple[TokenSequence, ...]  # SPAN_WORDS single words and the whole
    speech: tuple[TokenSequence, ...]
    text_ends: tuple[int, ...]  # position of the last token
    speech_ends: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """Words by number, passages that hold them, and spans."""

    passages: tuple[Passage, ...]
    spans: tuple[Span, ...]
    types: IntArray  # [N] equal numbers for words that are spelled alike, without regard to case and punctuation
    next_types: IntArray  # [N] the same of the next word; NONE at the end of a record
    text_ids: IntArray  # [N] the first text id of the word
    next_text_ids: IntArray  # [N] the first text id of the next word, or NONE
    units: IntArray  # [N] the last unit of the word
    texts: IntArray  # [N] equal numbers for words of records with the same text
    num_records: int

    @property
    def num_words(self) -> int:
        """Words (N)."""
        return len(self.types)


def draw_sample(
    records: Sequence[Record],
    vocabulary: Vocabulary,
    num_words: int,
    num_spans: int,
    sequence_length: int,
    seed: int,
    spell: Callable[[IntArray], str] | None = None,
    interleaving: InterleavingConfig | None = None,
) -> Sample:
    """Draw passages from random records, one from each before a second one from any, until there are enough words.

    Args:
        records: held-out records; those without word times are passed over.
        vocabulary: of the model.
        num_words: to draw; fewer if the records have fewer.
        num_spans: of SPAN_WORDS words, to draw from the passages.
        sequence_length: most positions of a sequence.
        seed: of the draw.
        spell: the text of ids; without it, words are alike if their ids are.
        interleaving: lengths of the spans of interleaved sequences.

    Raises:
        UserError: there are fewer than FEWEST_WORDS aligned words.
    """
    found, windows = [], list(_windows(records, vocabulary, num_words, sequence_length, seed))
    table = _Table(spell)
    for words, first, last in windows:
        found.append(_passage(words, first, last, table, vocabulary, sequence_length, seed, interleaving))
    if len(table.types) < FEWEST_WORDS:
        raise UserError(
            f"{len(table.types)} aligned words were found, but at least {FEWEST_WORDS} are needed; use a held-out set"
            " with word times (--set), or more words (--words)"
        )
    spans = _spans(windows, vocabulary, num_spans, seed)
    types, next_types, text_ids, next_text_ids, units, texts = (np.array(c, np.int64) for c in table.columns)
    num_records = len({words.record.id for words, _, _ in windows})
    return Sample(tuple(found), spans, types, next_types, text_ids, next_text_ids, units, texts, num_records)


class _Table:
    """What is known about each word, column by column."""

    def __init__(self, spell: Callable[[IntArray], str] | None) -> None:
        self.types: list[int] = []
        self.columns: tuple[list[int], ...] = (self.types, [], [], [], [], [])
        self._spell = spell
        self._type_numbers: dict[str | bytes, int] = {}
        self._text_numbers: dict[bytes, int] = {}

    def add(self, words: RecordWords, word: int) -> int:
        """Returns the number of the word."""
        record = words.record
        following = word + 1 < len(record.word_text_ends)
        text = self._text_numbers.setdefault(record.text_ids.tobytes(), len(self._text_numbers))
        row = (
            self._type(words, word),
            self._type(words, word + 1) if following else NONE,
            int(words.text_of(word, word + 1)[0]),
            int(words.text_of(word + 1, word + 2)[0]) if following else NONE,
            int(record.units[int(record.word_unit_ends[word]) - 1, 0]),
            text,
        )
        for column, value in zip(self.columns, row, strict=True):
            column.append(value)
        return len(self.types) - 1

    def _type(self, words: RecordWords, word: int) -> int:
        ends = words.record.word_text_ends
        ids = words.record.text_ids[int(ends[word - 1]) if word else 0 : int(ends[word])].astype(np.int64)
        key: str | bytes = ids.tobytes()
        if self._spell is not None:
            # A word of punctuation only keeps it.
            spelled = self._spell(ids).casefold().strip()
            key = "".join(letter for letter in spelled if letter.isalnum() or letter == "'") or spelled
        return self._type_numbers.setdefault(key, len(self._type_numbers))


def _windows(
    records: Sequence[Record], vocabulary: Vocabulary, num_words: int, sequence_length: int, seed: int
) -> Iterator[tuple[RecordWords, int, int]]:
    """Record, first word and end of each passage, at most `num_words` words in all."""
    left: list[tuple[RecordWords, list[tuple[int, int]]]] = []
    count = 0
    for index in np.random.default_rng(seed).permutation(len(records)):
        record = records[int(index)]
        if not record.is_aligned:
            continue
        words = RecordWords.of(record, vocabulary)
        windows = _cut(words, sequence_length - vocabulary.num_codebooks - 1)
        rng = sequence_rng(seed, record.id, 0, "analysis")
        shuffled = [windows[place] for place in rng.permutation(len(windows))]
        left.append((words, shuffled))
        count += sum(last - first for first, last in shuffled[-1:])  # which is used first
        if count >= num_words:
            break
    while left and num_words > 0:
        for words, windows in left:
            if not windows or num_words <= 0:
                continue
            first, last = windows.pop()
            last = min(last, first + num_words)
            num_words -= last - first
            yield words, first, last
        left = [(words, windows) for words, windows in left if windows]


def _cut(words: RecordWords, size: int) -> list[tuple[int, int]]:
    """The record in windows of words with at most `size` tokens in either modality; longer words are left out."""
    found, first, num_words = [], 0, len(words.text_offsets) - 1
    while first < num_words:
        fitting = [
            int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
            for offsets in (words.text_offsets, words.unit_offsets)
        ]
        last = min(fitting)
        if last > first:
            found.append((first, last))
        first = max(last, first + 1)
    return found


def _passage(
    words: RecordWords,
    first: int,
    last: int,
    table: _Table,
    vocabulary: Vocabulary,
    sequence_length: int,
    seed: int,
    interleaving: InterleavingConfig | None,
) -> Passage:
    text, text_ends = _text(words, first, last, vocabulary)
    speech, speech_ends = _speech(words, first, last, vocabulary)
    rng = sequence_rng(seed, f"{words.record.id}/{first}", 0, "analysis-interleaved")
    mixed = build_sequence(
        words.record, "interleaved", vocabulary, sequence_length, interleaving or InterleavingConfig(), rng
    )
    numbers = [table.add(words, word) for word in range(first, last)]
    return Passage(text, speech, mixed, text_ends, speech_ends, np.array(numbers, np.int64))


def _text(words: RecordWords, first: int, last: int, vocabulary: Vocabulary) -> tuple[TokenSequence, IntArray]:
    tokens = words.text_of(first, last)
    writer = SequenceWriter(vocabulary, len(tokens) + 2)
    writer.text(np.concatenate(([vocabulary.text_eos], tokens)))
    ends = words.text_offsets[first + 1 : last + 1] - words.text_offsets[first]
    return _closed(writer, words.record), ends - _utterance_ends(words, first, last)


def _speech(words: RecordWords, first: int, last: int, vocabulary: Vocabulary) -> tuple[TokenSequence, IntArray]:
    units = words.units_of(first, last)
    writer = SequenceWriter(vocabulary, len(units) + vocabulary.num_codebooks + 1)
    eos = np.full((1, vocabulary.num_codebooks), vocabulary.speech_eos)
    writer.speech(np.concatenate((eos, units)))
    ends = words.unit_offsets[first + 1 : last + 1] - words.unit_offsets[first]
    return _closed(writer, words.record), ends - _utterance_ends(words, first, last)


def _closed(writer: SequenceWriter, record: Record) -> TokenSequence:
    """The sequence with one more token, a target that is not scored, so that its last position is an input too."""
    built = writer.finish(record.id, "interleaved")
    assert built.length == writer.size - 1
    return replace(built, length=writer.size)


def _utterance_ends(words: RecordWords, first: int, last: int) -> IntArray:
    """1 for each word that EOS follows, [last - first]."""
    ends = np.append(words.utterance_starts[1:], len(words.text_offsets) - 1)
    return np.isin(np.arange(first + 1, last + 1), ends).astype(np.int64)


def _spans(
    windows: Sequence[tuple[RecordWords, int, int]], vocabulary: Vocabulary, count: int, seed: int
) -> tuple[Span, ...]:
    """Spans inside utterances, about as many from each passage."""
    rng = np.random.default_rng(seed)
    possible = []
    for words, first, last in windows:
        ended = np.cumsum(np.concatenate(([0], _utterance_ends(words, first, last))))
        # An utterance may end with the last word of a span, but not inside.
        starts = [at for at in range(last - first - SPAN_WORDS + 1) if ended[at] == ended[at + SPAN_WORDS - 1]]
        possible += [(words, first + at) for at in starts]
    chosen = sorted(rng.permutation(len(possible))[:count].tolist())
    found = []
    for words, first in (possible[place] for place in chosen):
        bounds = [*((first + at, first + at + 1) for at in range(SPAN_WORDS)), (first, first + SPAN_WORDS)]
        texts = [_text(words, *bound, vocabulary) for bound in bounds]
        speeches = [_speech(words, *bound, vocabulary) for bound in bounds]
        found.append(
            Span(
                tuple(sequence for sequence, _ in texts),
                tuple(sequence for sequence, _ in speeches),
                tuple(int(ends[-1]) for _, ends in texts),
                tuple(int(ends[-1]) for _, ends in speeches),
            )
        )
    return tuple(found)
