"""Answers of a model: what it writes, and which candidate is the likeliest."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.records import ASSISTANT
from tolktrain.data.sequences import IntArray
from tolktrain.data.strategies.base import Modality
from tolktrain.data.strategies.conversation import LaidTurn, Segment, spoken, written
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.evaluate.closed_answers.questions import Question
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import Steps
from tolktrain.vocabulary import Vocabulary

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def prompt(question: Question, asked_in: Modality, vocabulary: Vocabulary) -> Context:
    """The question as a turn of the user, and the token of the assistant.

    Raises `UserError` if the model has no tokens of roles.
    """
    asked = LaidTurn.of(question.asked.role, [_said(question.asked, asked_in, vocabulary)], vocabulary)
    begun = LaidTurn.of(ASSISTANT, [], vocabulary)
    return Context.of_segments([*asked.segments, *begun.segments], vocabulary)


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
    decoder: Steps, questions: Sequence[Question], asked_in: Modality, answered_in: Modality, vocabulary: Vocabulary
) -> list[FloatArray]:
    """Of each question, the log-likelihood of each candidate, EOS included, in nats per position: float64 [candidates].

    A question is read once, and continued by all its candidates.

    Args:
        decoder: of the modality of the answers.
        questions: at least one.
        asked_in: modality of the questions.
        answered_in: modality of the answers.
        vocabulary: of the model.

    Raises:
        UserError: a likelihood is no finite number, or the model has no tokens of roles.
    """
    counts = [len(question.candidates) for question in questions]
    answers = [
        Context.of_segments([_said(candidate.turn, answered_in, vocabulary)], vocabulary).tokens.T
        for question in questions
        for candidate in question.candidates
    ]
    rows = np.repeat(np.arange(len(questions)), counts).tolist()
    logits = decoder.begin([prompt(question, asked_in, vocabulary) for question in questions])
    decoder.keep(rows)
    logits = logits[rows]
    totals, growing = np.zeros(len(answers)), np.arange(len(answers))
    for place in range(max(map(len, answers))):
        columns = np.stack([answers[row][place] for row in growing])
        totals[growing] += _log_likelihoods(logits, columns, answered_in, vocabulary)
        unfinished = [at for at, row in enumerate(growing) if place + 1 < len(answers[row])]
        if not unfinished:
            break
        if len(unfinished) < len(growing):
            decoder.keep(unfinished)
            growing, columns = growing[unfinished], columns[unfinished]
        logits = decoder.extend(columns)
    scores = np.split(totals / [len(answer) for answer in answers], np.cumsum(counts)[:-1])
    for question, found in zip(questions, scores, strict=True):
        if not np.isfinite(found).all():
            raise UserError(
                f"{question.id}: the likelihood of an answer is not a finite number; the weights of this checkpoint are"
                " damaged or training has diverged: evaluate an earlier checkpoint"
            )
    return scores


def _said(turn: Turn, modality: Modality, vocabulary: Vocabulary) -> Segment:
    return (written if modality == "text" else spoken)(turn, vocabulary, "everything")


def _log_likelihoods(logits: Tensor, columns: IntArray, modality: Modality, vocabulary: Vocabulary) -> FloatArray:
    """Of positions [n, K] in nats, the sum over codebooks whose token is not PAD: float64 [n]."""
    if modality == "text":
        logits, columns = logits[:, None], columns[:, :1]  # the other rows are padding
    chosen = torch.from_numpy(columns).to(logits.device)[..., None]
    nats = torch.log_softmax(logits.double(), dim=-1)
    if modality == "speech":
        chosen = chosen.clamp(max=logits.shape[-1] - 1)  # PAD is never predicted
    found: FloatArray = nats.gather(-1, chosen)[..., 0].cpu().numpy()
    counted = np.ones_like(columns, np.bool_) if modality == "text" else columns != vocabulary.speech_pad
    return np.where(counted, found, 0.0).sum(axis=1)


def best_constant(questions: Sequence[Question]) -> float:
    """The share of questions that are answered by the word that is right most often for their kind."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        of_kind = counts.setdefault(question.kind, {})
        of_kind[question.answer] = of_kind.get(question.answer, 0) + 1
    return sum(max(of_kind.values()) for of_kind in counts.values()) / len(questions)
