"""How often the model prefers the true continuation of a passage to a random one, in four directions.

A trial takes consecutive words of a held-out record, from the start of an utterance: a prompt and its true
continuation. The random continuation is the true continuation of another trial, from a record with another text, in
the same voice if there is one. So both come from the same distribution (same number of words, same distance from the
start of an utterance), and a model that ignores the prompt is right half of the time. All directions use the same
trials.

The score is the mean log-likelihood per token of the continuation, given the prompt. The two continuations have the
same number of words but not of tokens: their sums differ by several nats per surplus token whatever the prompt, which
would hide the effect of the prompt; the mean does not depend on the length to first order.

The interval takes trials as independent; several of one record are not quite.

The switch token is between the modalities, as in interleaved sequences; EOS follows the words that end an
utterance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tolktrain.data.batch import collate
from tolktrain.data.records import Record
from tolktrain.data.sequences import IntArray, SequenceWriter, part_offsets, sequence_rng, text_with_eos, units_with_eos
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.evaluate.losses import TokenNll
from tolktrain.vocabulary import Vocabulary

DIRECTIONS = ("text_to_text", "text_to_speech", "speech_to_text", "speech_to_speech")
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class RecordWords:
    """A record cut into words: rows `offsets[w]:offsets[w + 1]` are word w, with the EOS that follows it."""

    record: Record
    text: IntArray  # [n]
    units: IntArray  # [m, K]
    text_offsets: IntArray  # [W + 1]
    unit_offsets: IntArray  # [W + 1]
    utterance_starts: IntArray  # words that begin an utterance

    @classmethod
    def of(cls, record: Record, vocabulary: Vocabulary) -> "RecordWords":
        """The words of an aligned record."""
        ends = np.searchsorted(record.word_text_ends, record.utterance_text_ends) + 1
        return cls(
            record=record,
            text=text_with_eos(record, vocabulary),
            units=units_with_eos(record, vocabulary),
            text_offsets=part_offsets(record.word_text_ends, record.utterance_text_ends),
            unit_offsets=part_offsets(record.word_unit_ends, record.utterance_unit_ends),
            utterance_starts=np.concatenate(([0], ends[:-1])).astype(np.int64),
        )

    def text_of(self, first: int, last: int) -> IntArray:
        """Text ids of the words first..last - 1."""
        return self.text[self.text_offsets[first] : self.text_offsets[last]]

    def units_of(self, first: int, last: int) -> IntArray:
        """Units of the words first..last - 1."""
        return self.units[self.unit_offsets[first] : self.unit_offsets[last]]


@dataclass(frozen=True)
class Passage:
    """Prompt and continuation in a record: the words begin..middle - 1 and middle..end - 1."""

    words: RecordWords
    begin: int
    middle: int
    end: int


@dataclass(frozen=True)
class Trial:
    """A passage, and another one whose continuation is the random one."""

    true: Passage
    other: Passage


def draw_trials(
    records: Sequence[Record],
    count: int,
    vocabulary: Vocabulary,
    prompt_words: int,
    continuation_words: int,
    seed: int = 0,
) -> list[Trial]:
    """At most `count` trials, always the same ones: records in random order, a new utterance of each in every round."""
    passages = list(_draw_passages(records, count, vocabulary, prompt_words, continuation_words, seed))
    trials = []
    for place, passage in enumerate(passages):
        rng = sequence_rng(seed, f"{passage.words.record.id}/{passage.begin}", 0, "random-continuation")
        shuffled = [passages[i] for i in rng.permutation(len(passages)) if i != place]
        same_voice = [other for other in shuffled if other.words.record.source == passage.words.record.source]
        other = next((other for other in same_voice + shuffled if _differs(passage, other)), None)
        if other is not None:
            trials.append(Trial(passage, other))
    return trials


def _draw_passages(
    records: Sequence[Record],
    count: int,
    vocabulary: Vocabulary,
    prompt_words: int,
    continuation_words: int,
    seed: int,
) -> Iterator[Passage]:
    starts: dict[int, list[int]] = {}
    cut = {}
    for index in np.random.default_rng(seed).permutation(len(records)):
        record = records[int(index)]
        if not record.is_aligned:
            continue
        words = RecordWords.of(record, vocabulary)
        latest = len(record.word_text_ends) - prompt_words - continuation_words
        possible = words.utterance_starts[words.utterance_starts <= latest]
        if len(possible):
            rng = sequence_rng(seed, record.id, 0, "passages")
            starts[int(index)] = rng.permutation(possible).tolist()
            cut[int(index)] = words
        if len(starts) >= count:
            break
    drawn = 0
    while starts and drawn < count:
        for index in list(starts)[: count - drawn]:
            begin = starts[index].pop()
            middle = begin + prompt_words
            yield Passage(cut[index], begin, middle, middle + continuation_words)
            drawn += 1
            if not starts[index]:
                del starts[index]


def _differs(passage: Passage, other: Passage) -> bool:
    """Whether the other passage is of another text, and continues with other words."""
    mine, its = passage.words, other.words
    return not np.array_equal(mine.record.text_ids, its.record.text_ids) and not np.array_equal(
        mine.text_of(passage.middle, passage.end), its.text_of(other.middle, other.end)
    )


def build_pair(
    trial: Trial, direction: str, vocabulary: Vocabulary, sequence_length: int
) -> tuple[TokenSequence, TokenSequence] | None:
    """Sequences of prompt and true, and prompt and random continuation, in which only the continuation is scored.

    Where they exceed `sequence_length`, both lose the same words at the front of the prompt; None if even one word of
    prompt does not fit. With K > 1 codebooks, a speech continuation of speech begins while the last codebooks still
    finish the prompt: the delay does not stop at a boundary inside a speech segment.
    """
    for begin in range(trial.true.begin, trial.true.middle):
        true, other = (
            _build(trial.true, begin, continuation, direction, vocabulary) for continuation in (trial.true, trial.other)
        )
        if max(true.length, other.length) <= sequence_length + 1:
            return true, other
    return None


def _build(prompt: Passage, begin: int, continuation: Passage, direction: str, vocabulary: Vocabulary) -> TokenSequence:
    source, target = direction.split("_to_")
    words, last = continuation.words, (continuation.middle, continuation.end)
    text = prompt.words.text_of(begin, prompt.middle)
    units = prompt.words.units_of(begin, prompt.middle)
    size = len(text) + len(units) + len(words.text_of(*last)) + len(words.units_of(*last))
    writer = SequenceWriter(vocabulary, size + 1 + 2 * (vocabulary.num_codebooks - 1))
    if direction == "speech_to_speech":
        writer.speech(np.concatenate([units, words.units_of(*last)]))
        writer.scored[: len(units)] = False
    else:
        if source == "text":
            writer.text(text, scored=False)
        else:
            writer.speech(units, scored=False)
        if source != target:
            writer.special(vocabulary.switch)
        if target == "text":
            writer.text(words.text_of(*last))
        else:
            writer.speech(words.units_of(*last))
    built = writer.finish(words.record.id, "interleaved")
    end = built.length
    return replace(built, tokens=built.tokens[:, :end], is_speech=built.is_speech[:end], scored=built.scored[:end])


def mean_log_likelihoods(
    sequences: Sequence[TokenSequence], token_nll: TokenNll, text_eos: int, batch_tokens: int
) -> np.ndarray:
    """Mean log-likelihood per scored position of each sequence, float64 [n]; batched by length."""
    scores = np.zeros(len(sequences))
    order = np.argsort([sequence.length for sequence in sequences], kind="stable")[::-1]
    begin = 0
    while begin < len(order):
        longest = sequences[order[begin]].length
        rows = order[begin : begin + max(1, batch_tokens // longest)]
        batch = collate([_padded(sequences[row], longest, text_eos) for row in rows])
        scored = (batch.text_pred | batch.speech_pred).numpy()
        scores[rows] = -(token_nll(batch) * scored).sum(axis=1) / scored.sum(axis=1)
        begin += len(rows)
    return scores


def _padded(sequence: TokenSequence, size: int, text_eos: int) -> TokenSequence:
    missing = size - sequence.length
    tokens = np.pad(sequence.tokens, ((0, 0), (0, missing)))
    tokens[0, sequence.length :] = text_eos
    return replace(
        sequence,
        tokens=tokens,
        is_speech=np.pad(sequence.is_speech, (0, missing)),
        scored=np.pad(sequence.scored, (0, missing)),
    )


def choose(
    trials: Sequence[Trial],
    direction: str,
    token_nll: TokenNll,
    vocabulary: Vocabulary,
    sequence_length: int,
    batch_tokens: int,
) -> dict[str, Any] | None:
    """How often the true continuation is likelier than the random one.

    Returns:
        `trials`, `correct`, `accuracy`, and `low` and `high` of its 95 % interval; None if no trial fits the sequence
        length.
    """
    pairs = [build_pair(trial, direction, vocabulary, sequence_length) for trial in trials]
    kept = [pair for pair in pairs if pair is not None]
    if not kept:
        return None
    flat = [sequence for pair in kept for sequence in pair]
    scores = mean_log_likelihoods(flat, token_nll, vocabulary.text_eos, batch_tokens).reshape(-1, 2)
    correct = int((scores[:, 0] > scores[:, 1]).sum())
    low, high = interval(correct, len(kept))
    accuracy = correct / len(kept)
    return {"trials": len(kept), "correct": correct, "accuracy": accuracy, "low": low, "high": high}


def interval(correct: int, trials: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % interval of a proportion."""
    from scipy.stats import binomtest

    found = binomtest(correct, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)
