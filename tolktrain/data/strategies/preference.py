"""Preferences: a chosen and a rejected answer after the same turns, as two documents."""

from collections.abc import Sequence

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.sequences import SequenceWriter
from tolktrain.data.strategies.base import SequenceStrategy
from tolktrain.data.strategies.conversation import Segment, interleaved, most_interleaved, spoken, written
from tolktrain.data.turns import Conversation, Turn, conversations_of
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary


class Preference(SequenceStrategy):
    """Pairs of documents: of each pair, the first ends with the chosen answer and the second with the rejected one.

    Documents with even numbers are therefore chosen, those with odd numbers rejected. Scored are the last turns only:
    what the documents of a pair have in common is the same in both. The answers of a pair are interleaved if both are
    aligned, else in speech if both have speech, else in text. The turns before are in speech where they have it.
    """

    reads = "preference"
    needs_text = False
    needs_speech = False
    scores = ("text", "speech")
    always_evaluated = False
    is_constant = True

    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Write all pairs. Raises `UserError` if one does not fit, because an answer that is cut cannot be compared."""
        documents = conversations_of(record)
        if len(documents) % 2:
            raise UserError(
                f"record {record.id!r} has {len(documents)} conversations, but preferences are pairs of them; prepare"
                " the data set again"
            )
        for chosen, rejected in zip(documents[::2], documents[1::2], strict=True):
            pair = [
                _lay_out(conversation, _form((chosen, rejected)), writer.vocabulary, interleaving, rng)
                for conversation in (chosen, rejected)
            ]
            total = sum(segment.num_tokens(writer.delay) for segments in pair for segment in segments)
            if writer.length + total > writer.size:
                raise UserError(
                    f"record {record.id!r}: its chosen and rejected answers, with the turns before them, do not fit"
                    f" into {writer.size} tokens; raise train.sequence_length to that for which the data set was"
                    " prepared"
                )
            for segments in pair:
                writer.begin_document()
                for segment in segments:
                    segment.write(writer)

    def most_tokens(self, pair: Sequence[Conversation], vocabulary: Vocabulary) -> int:
        """Most tokens of a pair, whatever is drawn. Raises `UserError` if its answers have no form in common."""
        form, total = _form(pair), 0
        for conversation in pair:
            segments = _lay_out(conversation, form, vocabulary, InterleavingConfig(), np.random.default_rng(0))
            prompt = segments[: 2 * len(conversation) - 1] if form == "interleaved" else segments
            total += sum(segment.num_tokens(vocabulary.num_codebooks - 1) for segment in prompt)
            total += most_interleaved(conversation[-1], vocabulary) if form == "interleaved" else 0
        return total

    def longest(self, info: DatasetInfo) -> int:
        """Tokens for which the records were packed."""
        assert info.conversations is not None
        return info.conversations.sequence_length + 1


def _form(pair: Sequence[Conversation]) -> str:
    """How both answers of a pair are written."""
    answers: list[Turn] = [conversation[-1] for conversation in pair]
    if all(answer.is_aligned for answer in answers):
        return "interleaved"
    if all(answer.has_speech for answer in answers):
        return "speech"
    if all(answer.has_text for answer in answers):
        return "text"
    raise UserError("the chosen and the rejected answer have neither text nor speech in common; give both the same")


def _lay_out(
    conversation: Conversation,
    form: str,
    vocabulary: Vocabulary,
    interleaving: InterleavingConfig,
    rng: np.random.Generator,
) -> list[Segment]:
    segments: list[Segment] = []
    for number, turn in enumerate(conversation):
        segments.append(Segment("special", np.array([vocabulary.role_token(turn.role)])))
        if number < len(conversation) - 1:
            segments.append((spoken if turn.has_speech else written)(turn, vocabulary, "nothing"))
        elif form == "interleaved":
            segments += interleaved(turn, vocabulary, interleaving, rng)
        else:
            segments.append((spoken if form == "speech" else written)(turn, vocabulary, "everything"))
    return segments


STRATEGY = Preference()
