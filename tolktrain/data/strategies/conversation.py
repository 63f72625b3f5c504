"""Conversations as sequences: what is common to the strategies of answers.

A turn is the token of its role, its content, and EOS. Each conversation of a record is a document. Scored are the turns
of the assistant and the EOS of every turn; with several codebooks, EOS of speech that is not the assistant's is not
scored, because delayed codebooks have units at its positions.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import ASSISTANT, SYSTEM, DatasetInfo, Record
from tolktrain.data.sequences import IntArray, SequenceWriter
from tolktrain.data.strategies.base import SequenceStrategy
from tolktrain.data.strategies.interleaved import span_boundaries
from tolktrain.data.turns import Conversation, Turn, conversations_of
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

Scored = Literal["nothing", "EOS", "everything"]


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive tokens of one modality, or one special token."""

    kind: Literal["special", "text", "speech"]
    ids: IntArray  # [n], of speech [n, K]; EOS included
    scored: Scored = "nothing"

    def num_tokens(self, delay: int) -> int:
        """Positions of a sequence that it takes."""
        return len(self.ids) + (delay if self.kind == "speech" else 0)

    def write(self, writer: SequenceWriter) -> None:
        """Append the tokens."""
        if self.kind == "special":
            writer.special(int(self.ids[0]))
            return
        write = writer.text if self.kind == "text" else writer.speech
        if self.scored == "EOS" and (self.kind == "text" or not writer.delay):
            write(self.ids[:-1], scored=False)
            write(self.ids[-1:])
        else:
            write(self.ids, scored=self.scored == "everything")


@dataclass(frozen=True, eq=False)
class LaidTurn:
    """A turn as tokens."""

    segments: Sequence[Segment]
    is_answer: bool
    is_instruction: bool
    num_tokens: int

    @classmethod
    def of(cls, role: str, content: Sequence[Segment], vocabulary: Vocabulary) -> "LaidTurn":
        """The token of a role, and what it says. Raises `UserError` if the model has no such token."""
        segments = [Segment("special", np.array([vocabulary.role_token(role)])), *content]
        num_tokens = sum(segment.num_tokens(vocabulary.num_codebooks - 1) for segment in segments)
        return cls(segments, role == ASSISTANT, role == SYSTEM, num_tokens)


class ConversationStrategy(SequenceStrategy):
    """Answers of an assistant in conversations."""

    reads = "conversation"
    needs_text = False  # which turns need what is checked turn by turn
    needs_speech = False
    always_evaluated = False

    @abstractmethod
    def answer(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """The content of the assistant's turn `number`. Raises `UserError` if the turn lacks what is needed."""

    def most_tokens(self, conversation: Conversation, vocabulary: Vocabulary) -> int:
        """Most tokens of the conversation up to its last answer, whatever is drawn."""
        rng = np.random.default_rng(0)
        laid = self.lay_out(conversation, vocabulary, InterleavingConfig(), rng)
        return sum(turn.num_tokens for turn in laid)

    def check(self, conversation: Conversation, vocabulary: Vocabulary, size: int) -> None:
        """Raise `UserError` if the conversation lacks what the strategy needs, or no answer begins within `size`
        tokens."""
        laid = self.lay_out(conversation, vocabulary, InterleavingConfig(), np.random.default_rng(0))
        if not laid:
            raise UserError("it has no turn of the assistant, so nothing would be scored")
        if not _beginnings(laid, size):
            least = min(_before_answer(laid, begin) for begin in exchanges(laid)) + 2
            raise UserError(
                f"at least {least} tokens are needed for the turns before an answer and its beginning, and a sequence"
                f" has {size}, so nothing would be scored; raise dialogue.sequence_length, or shorten these turns"
            )

    def lay_out(
        self,
        conversation: Conversation,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> list[LaidTurn]:
        """The turns up to the last answer, which are all that is trained on."""
        answers = [number for number, turn in enumerate(conversation) if turn.is_answer]
        numbers = range(answers[-1] + 1 if answers else 0)
        return [self.lay_out_turn(conversation, number, vocabulary, interleaving, rng) for number in numbers]

    def lay_out_turn(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> LaidTurn:
        """One turn: its role, its content and EOS. Raises `UserError` naming the turn if it lacks what is needed."""
        turn = conversation[number]
        try:
            if turn.is_answer:
                content = self.answer(conversation, number, vocabulary, interleaving, rng)
            else:
                content = [spoken(turn, vocabulary, "EOS") if turn.has_speech else written(turn, vocabulary, "EOS")]
            return LaidTurn.of(turn.role, content, vocabulary)
        except UserError as error:
            raise UserError(f"turn {number + 1}: {error}") from None

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Write each conversation as a document, whole if it fits.

        A conversation that is longer than what is left begins with a random exchange, after its first instructions, and
        ends with the last answer that fits. If the first answer does not fit, it is cut. A conversation of which no
        answer begins is left out. Raises `UserError` if no conversation is left.
        """
        for conversation in conversations_of(record):
            laid = self.lay_out(conversation, writer.vocabulary, interleaving, rng)
            chosen = _chosen(laid, writer.size - writer.length, rng)
            if chosen:
                writer.begin_document()
            for turn in chosen:
                for segment in turn.segments:
                    segment.write(writer)
        if not writer.length:
            raise UserError(
                f"record {record.id!r}: no answer begins within {writer.size} tokens; raise train.sequence_length to"
                " that for which the data set was prepared"
            )

    def longest(self, info: DatasetInfo) -> int:
        """Tokens for which the records were packed."""
        assert info.conversations is not None
        return info.conversations.sequence_length + 1


def written(turn: Turn, vocabulary: Vocabulary, scored: Scored) -> Segment:
    """The text of a turn and EOS. Raises `UserError` if it has none."""
    _require(turn.has_text, turn, "text")
    if int(turn.text_ids.max()) >= vocabulary.text_vocab_size:
        raise UserError(
            f"it has the text id {int(turn.text_ids.max())}, which is outside the model's text vocabulary of"
            f" {vocabulary.text_vocab_size} ids"
        )
    return Segment("text", np.append(turn.text_ids, vocabulary.text_eos).astype(np.int64), scored)


def spoken(turn: Turn, vocabulary: Vocabulary, scored: Scored) -> Segment:
    """The units of a turn and EOS. Raises `UserError` if it has none."""
    _require(turn.has_speech, turn, "speech")
    if turn.units.shape[1] != vocabulary.num_codebooks:
        raise UserError(
            f"it has {turn.units.shape[1]} codebooks but the model has {vocabulary.num_codebooks}; set"
            " model.speech.num_codebooks to the data's"
        )
    if int(turn.units.max()) >= vocabulary.num_units:
        raise UserError(
            f"it has the unit {int(turn.units.max())}, which is outside the model's speech vocabulary of"
            f" {vocabulary.num_units} ids"
        )
    eos = np.full((1, vocabulary.num_codebooks), vocabulary.speech_eos)
    return Segment("speech", np.concatenate((turn.units, eos)).astype(np.int64), scored)


def switch(vocabulary: Vocabulary) -> Segment:
    """A change of modality."""
    return Segment("special", np.array([vocabulary.switch]))


def interleaved(
    turn: Turn, vocabulary: Vocabulary, interleaving: InterleavingConfig, rng: np.random.Generator
) -> Iterator[Segment]:
    """A turn in spans of text and speech in turn, all scored; EOS ends the last span. Raises `UserError`."""
    _require(turn.is_aligned, turn, "word alignment")
    text, units = written(turn, vocabulary, "everything").ids, spoken(turn, vocabulary, "everything").ids
    num_words = len(turn.word_text_ends)
    text_offsets, unit_offsets = (
        np.concatenate(([0], ends[:-1], [ends[-1] + 1])) for ends in (turn.word_text_ends, turn.word_unit_ends)
    )
    is_speech = bool(rng.integers(2))
    words = np.minimum(span_boundaries(num_words, is_speech, interleaving, rng), num_words)
    words = words[: int(np.searchsorted(words, num_words)) + 1]
    for span, (first, last) in enumerate(zip(words[:-1], words[1:], strict=True)):
        if span:
            yield switch(vocabulary)
        if is_speech:
            yield Segment("speech", units[unit_offsets[first] : unit_offsets[last]], "everything")
        else:
            yield Segment("text", text[text_offsets[first] : text_offsets[last]], "everything")
        is_speech = not is_speech


def most_interleaved(turn: Turn, vocabulary: Vocabulary) -> int:
    """Most tokens that `interleaved` makes of a turn, for any lengths of spans."""
    text, units = (np.diff(ends, prepend=0) for ends in (turn.word_text_ends, turn.word_unit_ends))
    return int(np.maximum(text, units).sum()) + 1 + len(text) * vocabulary.num_codebooks


def _require(present: bool, turn: Turn, what: str) -> None:
    if not present:
        raise UserError(
            f"the turn of the role {turn.role} has no {what}; use another strategy, or add it and prepare the data"
            " again"
        )


def exchanges(laid: Sequence[LaidTurn]) -> list[int]:
    """Turns at which a conversation may begin: the first after instructions, and each that follows an answer."""
    first = next(number for number, turn in enumerate(laid) if not turn.is_instruction)
    return [first, *(n for n in range(first + 1, len(laid)) if laid[n - 1].is_answer and not laid[n].is_answer)]


def instructions(laid: Sequence[LaidTurn]) -> list[LaidTurn]:
    """The instructions before everything else."""
    return list(laid[: next(number for number, turn in enumerate(laid) if not turn.is_instruction)])


def _before_answer(laid: Sequence[LaidTurn], begin: int) -> int:
    """Tokens before the first answer of a conversation that begins with a turn, instructions included."""
    answer = next(number for number in range(begin, len(laid)) if laid[number].is_answer)
    return sum(turn.num_tokens for turn in (*instructions(laid), *laid[begin:answer]))


def _beginnings(laid: Sequence[LaidTurn], room: int) -> list[int]:
    """Turns with which a conversation may begin so that its first answer fits, or, if none does, begins."""
    begun, fitting = [], []
    for begin in exchanges(laid):
        answer = next(number for number in range(begin, len(laid)) if laid[number].is_answer)
        before = _before_answer(laid, begin)
        if before + 2 <= room:  # the token of the role, and one that is scored
            begun.append(begin)
        if before + laid[answer].num_tokens <= room:
            fitting.append(begin)
    return fitting or begun


def _chosen(laid: Sequence[LaidTurn], room: int, rng: np.random.Generator) -> Sequence[LaidTurn]:
    """The turns that are written; the last of them may be cut. Empty if no answer begins."""
    if not laid or sum(turn.num_tokens for turn in laid) <= room:
        return laid
    head = instructions(laid)
    free = room - sum(turn.num_tokens for turn in head)
    begins = _beginnings(laid, room)
    if not begins:
        return []
    # Late beginnings would leave room at the end: of those from which everything that follows fits, the first.
    long = [begin for begin in begins if sum(turn.num_tokens for turn in laid[begin:]) > free]
    begins = [*long, *begins[len(long) : len(long) + 1]]
    begin = begins[int(rng.integers(len(begins)))]
    ends = np.cumsum([turn.num_tokens for turn in laid[begin:]])
    answers = [number for number in range(begin, len(laid)) if laid[number].is_answer]
    fitting = [number for number in answers if int(ends[number - begin]) <= free]
    return [*head, *laid[begin : (fitting[-1] if fitting else answers[0]) + 1]]
