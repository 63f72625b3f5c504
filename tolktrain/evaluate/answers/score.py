"""Answers of a model: what it writes, and which candidate is the likeliest."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tolktrain.data.records import ASSISTANT
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.data.sequences import SequenceWriter
from tolktrain.data.strategies.base import Modality
from tolktrain.data.strategies.conversation import spoken, written
from tolktrain.data.turns import Turn
from tolktrain.evaluate.answers.questions import Question
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.scoring import TokenNll, mean_log_likelihoods
from tolktrain.generate.context import Context
from tolktrain.vocabulary import Vocabulary

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def prompt(question: Question, asked_in: Modality, vocabulary: Vocabulary) -> Context:
    """The question as a turn of the user, and the token of the assistant.

    Raises `UserError` if the model has no tokens of roles.
    """
    writer = _asked(question, asked_in, vocabulary)
    return Context(writer.tokens[:, : writer.length], writer.is_speech[: writer.length])


def first_candidate(text: str, question: Question) -> int | None:
    """The place of the candidate whose word is the first of the candidates' words in a text, in upper or lower case."""
    places = {candidate.word.casefold(): place for place, candidate in enumerate(question.candidates)}
    for match in _WORD.finditer(text.casefold()):
        if match.group() in places:
            return places[match.group()]
    return None


def likeliest(scores: FloatArray) -> int | None:
    """The place of the highest score; None if it is not the only one."""
    best = np.flatnonzero(np.isclose(scores, scores.max(), rtol=1e-9, atol=0.0))
    return int(best[0]) if len(best) == 1 else None


def score_candidates(
    questions: Sequence[Question],
    asked_in: Modality,
    answered_in: Modality,
    token_nll: TokenNll,
    vocabulary: Vocabulary,
    batch_tokens: int,
) -> list[FloatArray]:
    """Of each question, the log-likelihood of each candidate, EOS included, in nats per token: float64 [candidates].

    Raises:
        UserError: a likelihood is no finite number, or the model has no tokens of roles.
    """
    sequences = [
        _answered(question, candidate.turn, asked_in, answered_in, vocabulary)
        for question in questions
        for candidate in question.candidates
    ]
    scores = mean_log_likelihoods(sequences, token_nll, vocabulary.text_eos, batch_tokens)
    ends = np.cumsum([len(question.candidates) for question in questions])
    return np.split(scores, ends[:-1])


def _answered(
    question: Question, answer: Turn, asked_in: Modality, answered_in: Modality, vocabulary: Vocabulary
) -> TokenSequence:
    room = 1 + len(answer.text_ids) + len(answer.units) + vocabulary.num_codebooks
    writer = _asked(question, asked_in, vocabulary, room)
    read = written if answered_in == "text" else spoken
    read(answer, vocabulary, "everything").write(writer)
    built = writer.finish(question.id, "answer_text" if answered_in == "text" else "answer_speech")
    end = built.length
    return replace(built, tokens=built.tokens[:, :end], is_speech=built.is_speech[:end], scored=built.scored[:end])


def _asked(question: Question, asked_in: Modality, vocabulary: Vocabulary, room: int = 0) -> SequenceWriter:
    asked = question.asked
    size = 3 + vocabulary.num_codebooks + len(asked.text_ids) + len(asked.units) + room
    writer = SequenceWriter(vocabulary, size)
    writer.special(vocabulary.role_token(asked.role))
    read = written if asked_in == "text" else spoken
    read(asked, vocabulary, "nothing").write(writer)
    writer.special(vocabulary.role_token(ASSISTANT))
    return writer


def best_constant(questions: Sequence[Question]) -> float:
    """The share of questions that are answered by the word that is right most often for their kind."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        of_kind = counts.setdefault(question.kind, {})
        of_kind[question.answer] = of_kind.get(question.answer, 0) + 1
    return sum(max(of_kind.values()) for of_kind in counts.values()) / len(questions)
