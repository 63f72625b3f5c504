"""Token sequences of benchmark items, and their scores by a model or an n-gram."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tolktrain.data.records import ASSISTANT, USER
from tolktrain.data.sequences import IntArray, SequenceWriter
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.data.strategies.conversation import LaidTurn, Segment
from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Modality, Role
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.rules import Context, ItemScore, SegmentScore
from tolktrain.evaluate.scoring import TokenNll, length_batches, nll_rows
from tolktrain.parallel.collectives import all_gather_objects
from tolktrain.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Part:
    """A segment as tokens: text ids [n], or units [n, K]; without EOS."""

    role: Role
    modality: Modality
    tokens: IntArray


@dataclass(frozen=True, eq=False)
class ItemSequence:
    """The sequence of an item, and where its segments are in it."""

    id: str
    sequence: TokenSequence
    spans: tuple[tuple[int, int], ...]  # first and last + 1 position of each segment
    has_closing_eos: bool  # the last position, then
    parts: tuple[Part, ...]

    @property
    def key(self) -> bytes:
        """Equal for items that consist of the same tokens, which thus have exactly the same score."""
        tokens = self.sequence
        return b"/".join((tokens.tokens.tobytes(), tokens.is_speech.tobytes(), repr(self.spans).encode()))


def build(item: str, parts: Sequence[Part], context: Context, vocabulary: Vocabulary) -> ItemSequence:
    """The sequence of an item: EOS of the first modality unless `context` is none, the segments, a closing EOS.

    A switch token is between segments of different modalities, and nothing between others: prompt and continuation form
    one utterance, as in the SmolTolk authors' evaluation. Neither the first EOS nor a switch is scored. With several
    codebooks there is no closing EOS, because the delay spreads it over positions of other tokens; and a continuation
    in the modality of its prompt begins while the last codebooks still finish the prompt.

    Raises:
        UserError: a segment has no tokens, or tokens outside the vocabulary.
    """
    for part in parts:
        _check(item, part, vocabulary)
    closing = vocabulary.num_codebooks == 1
    size = sum(len(part.tokens) + vocabulary.num_codebooks + 1 for part in parts) + 2
    writer = SequenceWriter(vocabulary, size)
    spans: list[tuple[int, int]] = []
    place = 0
    while place < len(parts):
        modality = parts[place].modality
        last = place
        while last + 1 < len(parts) and parts[last + 1].modality == modality:
            last += 1
        if place:
            writer.special(vocabulary.switch)
        eos = _eos(modality, vocabulary)
        pieces = [eos] if context == "eos" and place == 0 else []
        begin = writer.length + len(pieces)
        pieces += [part.tokens for part in parts[place : last + 1]]
        pieces += [eos] if closing and last + 1 == len(parts) else []
        (writer.speech if modality == "speech" else writer.text)(np.concatenate(pieces))
        for part in parts[place : last + 1]:
            spans.append((begin, begin + len(part.tokens)))
            begin += len(part.tokens)
        if not closing and modality == "speech":
            spans[-1] = (spans[-1][0], writer.length)  # the delay
        place = last + 1
    if context == "eos":
        writer.scored[0] = False
    built = writer.finish(item, "interleaved")
    end = built.length
    sequence = replace(built, tokens=built.tokens[:, :end], is_speech=built.is_speech[:end], scored=built.scored[:end])
    return ItemSequence(item, sequence, tuple(spans), closing, tuple(parts))


def build_exchange(item: str, parts: Sequence[Part], vocabulary: Vocabulary) -> ItemSequence:
    """The sequence of a question and an answer, as turns of the user and of the assistant in training.

    A model without tokens of roles has no such sequences. With several codebooks there is no closing EOS, as in
    `build`. Raises UserError likewise.
    """
    for part in parts:
        _check(item, part, vocabulary)
    closing = vocabulary.num_codebooks == 1
    question, answer = parts
    turns = [
        LaidTurn.of(USER, [_segment(question, vocabulary, with_eos=True)], vocabulary),
        LaidTurn.of(ASSISTANT, [_segment(answer, vocabulary, with_eos=closing)], vocabulary),
    ]
    size = sum(turn.num_tokens for turn in turns)
    writer = SequenceWriter(vocabulary, size)
    spans = []
    for turn, part in zip(turns, parts, strict=True):
        begin = writer.length + 1  # after the role
        spans.append((begin, begin + len(part.tokens)))
        for segment in turn.segments:
            segment.write(writer)
    if not closing:
        spans[-1] = (spans[-1][0], size)  # the delay
    return ItemSequence(item, writer.finish(item, "answer_text"), tuple(spans), closing, tuple(parts))


def _segment(part: Part, vocabulary: Vocabulary, with_eos: bool) -> Segment:
    ids = np.concatenate([part.tokens, _eos(part.modality, vocabulary)]) if with_eos else part.tokens
    return Segment(part.modality, ids, "everything")


def _eos(modality: Modality, vocabulary: Vocabulary) -> IntArray:
    if modality == "text":
        return np.array([vocabulary.text_eos])
    return np.full((1, vocabulary.num_codebooks), vocabulary.speech_eos)


def _check(item: str, part: Part, vocabulary: Vocabulary) -> None:
    if not len(part.tokens):
        raise UserError(
            f"{item}: its {part.role} has no tokens, so it cannot be scored; the file is empty or too short"
        )
    size = vocabulary.text_vocab_size if part.modality == "text" else vocabulary.num_units
    if int(part.tokens.min()) < 0 or int(part.tokens.max()) >= size:
        raise UserError(
            f"{item}: its {part.role} holds the id {int(part.tokens.max())}, outside of the model's {size} ids of"
            f" {part.modality}; the benchmark's tokens were made with another tokenizer than the model's"
        )


def score_items(
    items: Sequence[ItemSequence],
    context: Context,
    token_nll: TokenNll,
    vocabulary: Vocabulary,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ItemScore]:
    """The scores of all items, in their order, on every rank. Collective if there are several.

    Items with the same tokens are scored once. Batches depend only on the set of sequences, neither on the order of the
    items nor on the number of ranks, so the same numbers result, bitwise.

    Args:
        items: from `build`, the same on all ranks.
        context: as given to `build`.
        token_nll: of the scorer.
        vocabulary: of the model.
        batch_tokens: positions of a batch.
        rank: of this process.
        world_size: number of processes; each scores every `world_size`-th batch.
        progress: called with the number of sequences done on this rank, and their total.

    Raises:
        UserError: a likelihood is not finite; names the item.
    """
    unique = {item.key: item for item in items}
    ordered = [unique[key] for key in sorted(unique)]
    batches = length_batches([item.sequence.length for item in ordered], batch_tokens)[rank::world_size]
    found: dict[int, tuple[tuple[SegmentScore, ...], float | None]] = {}
    total, failure = sum(map(len, batches)), None
    try:
        for batch in batches:
            sequences = [ordered[index].sequence for index in batch]
            for place, nll in nll_rows(sequences, token_nll, vocabulary.text_eos, batch_tokens):
                found[batch[place]] = _scores(ordered[batch[place]], nll)
            progress(len(found), total)
    except UserError as error:
        failure = str(error)
    gathered = all_gather_objects((found, failure))
    for _, message in gathered:
        if message is not None:
            raise UserError(message)
    scores = {ordered[index].key: score for part, _ in gathered for index, score in part.items()}
    return [ItemScore(item.id, context, *scores[item.key]) for item in items]


def _scores(item: ItemSequence, nll: FloatArray) -> tuple[tuple[SegmentScore, ...], float | None]:
    segments = []
    for part, (begin, end) in zip(item.parts, item.spans, strict=True):
        first = max(begin, 1)  # nothing precedes position 0
        total = -float(nll[first - 1 : end - 1].sum()) + 0.0  # not -0.0
        segments.append(SegmentScore(part.role, part.modality, total, end - first))
    return tuple(segments), -float(nll[-1]) if item.has_closing_eos else None
