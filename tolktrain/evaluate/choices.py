"""How often the model prefers the true continuation of a passage to a random one, in four directions.

A trial takes consecutive words of a held-out record: a prompt of whole utterances and, as its true continuation, the
words that follow, which begin a new utterance. The random continuation is the true continuation of another trial, from
a record with another text, in the same voice if there is one. So both come from the same distribution (same number of
words, both begin an utterance), and a model that ignores the prompt is right half of the time. All directions use the
same trials.

Prompt and continuation meet where an utterance ends. Inside an utterance, the first token of the continuation would
give the answer away: a bigram then reaches 80 % in text. Here a bigram sees the same token, EOS or switch, before both
continuations, so it ignores the prompt. Its accuracy is measured on the same trials; a direction is judged against it.

The score is the mean log-likelihood per token of the continuation, given the prompt. The two continuations have the
same number of words but not of tokens: their sums differ by several nats per surplus token whatever the prompt, which
would hide the effect of the prompt; the mean does not depend on the length to first order. Equal scores count as half
right. Intervals are bootstrapped over texts, because trials of one text depend on each other.

The switch token is between the modalities, as in interleaved sequences; EOS follows the words that end an
utterance.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tolktrain.data.records import Record
from tolktrain.data.sequences import IntArray, SequenceWriter, part_offsets, sequence_rng, text_with_eos, units_with_eos
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.evaluate.intervals import share_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.scoring import WHOLE, Share, TokenNll, mean_log_likelihoods, points
from tolktrain.vocabulary import Vocabulary

DIRECTIONS = ("text_to_text", "text_to_speech", "speech_to_text", "speech_to_speech")


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

    def prompts(self, fewest_words: int, latest_end: int) -> list[tuple[int, int]]:
        """First word and end of the shortest prompt of whole utterances before each utterance that begins at
        `latest_end` or earlier, if it has enough words."""
        starts = self.utterance_starts
        found = []
        for end in starts[starts <= latest_end]:
            begins = starts[starts <= end - fewest_words]
            if len(begins):
                found.append((int(begins[-1]), int(end)))
        return found


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

    @property
    def id(self) -> str:
        """The records and the places of both passages, the same in every run with these held-out records."""
        return " | ".join(
            f"{passage.words.record.id} {passage.begin}-{passage.middle}-{passage.end}"
            for passage in (self.true, self.other)
        )

    @property
    def text_key(self) -> str:
        """Equal for trials whose true continuation is of the same text, in whatever voice."""
        return hashlib.sha256(self.true.words.record.text_ids.tobytes()).hexdigest()[:16]


def draw_trials(
    records: Sequence[Record],
    count: int,
    vocabulary: Vocabulary,
    prompt_words: int,
    continuation_words: int,
    seed: int = 0,
) -> list[Trial]:
    """At most `count` trials, always the same ones: records in random order, another passage of each in every round.

    Args:
        records: held-out records; those without word times are passed over.
        count: most trials.
        vocabulary: of the model.
        prompt_words: fewest words of the prompt, which consists of as few whole utterances as hold them.
        continuation_words: words of the continuation, from the next utterance on.
        seed: of the draw; not the run's, so that runs can be compared trial by trial.
    """
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
    left: dict[int, list[tuple[int, int]]] = {}
    cut = {}
    for index in np.random.default_rng(seed).permutation(len(records)):
        record = records[int(index)]
        if not record.is_aligned:
            continue
        words = RecordWords.of(record, vocabulary)
        possible = words.prompts(prompt_words, len(record.word_text_ends) - continuation_words)
        if possible:
            rng = sequence_rng(seed, record.id, 0, "passages")
            left[int(index)] = [possible[place] for place in rng.permutation(len(possible))]
            cut[int(index)] = words
        if len(left) >= count:
            break
    drawn = 0
    while left and drawn < count:
        for index in list(left)[: count - drawn]:
            begin, middle = left[index].pop()
            yield Passage(cut[index], begin, middle, middle + continuation_words)
            drawn += 1
            if not left[index]:
                del left[index]


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


@dataclass(frozen=True, eq=False)
class TrialScores:
    """The trials of a direction that fit the sequence length, and their scores."""

    trials: tuple[Trial, ...]
    scores: Mapping[str, FloatArray]  # by scorer: [n, 2], of the true and of the random continuation

    def summary(self) -> dict[str, Any]:
        """Of the model `trials`, `correct` (a tie is half a trial), `accuracy`, `low` and `high` of its 95 % interval;
        of the other scorers, by name, their accuracy on the same trials."""
        won = {name: points(scores[:, 0], scores[:, 1]) for name, scores in self.scores.items()}
        model = won.pop("model")
        low, high = share_interval(model, [trial.text_key for trial in self.trials])
        row = {
            "trials": len(self.trials),
            "correct": float(model.sum()),
            "accuracy": float(model.mean()),
            "low": low,
            "high": high,
        }
        return row | {name: float(values.mean()) for name, values in won.items()}


def score_trials(
    trials: Sequence[Trial],
    direction: str,
    scorers: Mapping[str, TokenNll],
    vocabulary: Vocabulary,
    sequence_length: int,
    batch_tokens: int,
    share: Share = WHOLE,
) -> TrialScores | None:
    """The mean log-likelihoods per token of true and random continuations; None if no trial fits the sequence length.
    Collective if the work is shared.

    Args:
        trials: as `draw_trials` draws them.
        direction: one of `DIRECTIONS`.
        scorers: by name: `model`, and those it is judged against.
        vocabulary: of the model.
        sequence_length: most positions of a sequence.
        batch_tokens: positions that are scored at a time.
        share: of this rank.

    Raises:
        UserError: a score is no finite number; names the record.
    """
    pairs = [(trial, build_pair(trial, direction, vocabulary, sequence_length)) for trial in trials]
    kept = [(trial, pair) for trial, pair in pairs if pair is not None]
    if not kept:
        return None
    flat = [sequence for _, pair in kept for sequence in pair]
    scores = {
        name: mean_log_likelihoods(flat, token_nll, vocabulary.text_eos, batch_tokens, share).reshape(-1, 2)
        for name, token_nll in scorers.items()
    }
    return TrialScores(tuple(trial for trial, _ in kept), scores)
