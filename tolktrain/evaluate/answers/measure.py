"""The directions in which questions are asked and answered, and the figures of a model in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tolktrain.data.strategies.base import Modality
from tolktrain.evaluate.answers.questions import Question
from tolktrain.evaluate.answers.score import best_constant, first_candidate, likeliest, prompt, score_candidates
from tolktrain.evaluate.intervals import difference_interval, share_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.scorer import Scorer
from tolktrain.generate.sampling import Sampling, TextLimits, sample_text
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

Judge = Literal["exact match", "likelihood"]
MOST_WRITTEN = 16  # text ids of an answer
_WRITTEN_TOGETHER = 32  # answers
_GREEDY = Sampling(temperature=0.0, top_k=1, seed=0)


@dataclass(frozen=True)
class Direction:
    """How questions are asked and answered, and how an answer is judged."""

    asked_in: Modality
    answered_in: Modality
    judge: Judge


DIRECTIONS = (
    Direction("text", "text", "exact match"),
    Direction("text", "text", "likelihood"),
    Direction("speech", "text", "exact match"),
    Direction("speech", "text", "likelihood"),
    Direction("speech", "speech", "likelihood"),
)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers in one direction."""

    chosen: tuple[int | None, ...]  # the place of the candidate of each question; None: none of them
    texts: tuple[str, ...] = ()  # that were written, of exact match


class Answerer:
    """A model that answers questions."""

    def __init__(
        self, model: SmolTolk, vocabulary: Vocabulary, decode: Callable[[list[int]], str], window: int
    ) -> None:
        """Args: decode, turns text ids into text; window, the most positions of context."""
        self._scorer = Scorer(model)
        self._vocabulary = vocabulary
        self._decode = decode
        self._window = window

    def answer(self, questions: Sequence[Question], direction: Direction, touch: Callable[[], None]) -> Answers:
        """The answers to all questions. Raises `UserError` as `score_candidates` does."""
        if direction.judge == "exact match":
            return self._written(questions, direction.asked_in, touch)
        vocabulary, batch_tokens = self._vocabulary, 8 * self._window
        scores: list[FloatArray] = []
        for begin in range(0, len(questions), _WRITTEN_TOGETHER):
            part = questions[begin : begin + _WRITTEN_TOGETHER]
            scores += score_candidates(
                part, direction.asked_in, direction.answered_in, self._scorer.token_nll, vocabulary, batch_tokens
            )
            touch()
        return Answers(tuple(likeliest(row) for row in scores))

    def _written(self, questions: Sequence[Question], asked_in: Modality, touch: Callable[[], None]) -> Answers:
        texts: list[str] = []
        for begin in range(0, len(questions), _WRITTEN_TOGETHER):
            contexts = [
                prompt(question, asked_in, self._vocabulary)
                for question in questions[begin : begin + _WRITTEN_TOGETHER]
            ]
            decoder = make_decoder(self._scorer.model, "text", self._window)
            written = sample_text(decoder, contexts, self._vocabulary, _GREEDY, TextLimits(MOST_WRITTEN, 1))
            texts += [self._decode([token for token in ids if token != self._vocabulary.text_eos]) for ids in written]
            touch()
        chosen = tuple(first_candidate(text, question) for text, question in zip(texts, questions, strict=True))
        return Answers(chosen, tuple(texts))


def right_answers(questions: Sequence[Question], answers: Answers) -> FloatArray:
    """1 where the right candidate was chosen, else 0; float64 [questions]."""
    pairs = zip(questions, answers.chosen, strict=True)
    return np.array([float(chosen == question.right) for question, chosen in pairs])


def summarize(
    questions: Sequence[Question], direction: Direction, tuned: Answers, base: Answers | None
) -> list[dict[str, Any]]:
    """A row for each set of questions.

    `set`, `asked_in`, `answered_in`, `judge`, `questions`, `accuracy` with `low` and `high` of its 95 % interval,
    `by_kind`, `constant` (see `best_constant`); with a base model `base`, `base_low`, `base_high`, and `difference`
    with its interval. Intervals by bootstrap over groups of questions.
    """
    rows = []
    mine = right_answers(questions, tuned)
    its = None if base is None else right_answers(questions, base)
    for name in dict.fromkeys(question.set for question in questions):
        places = [place for place, question in enumerate(questions) if question.set == name]
        chosen = [questions[place] for place in places]
        groups = [question.group for question in chosen]
        low, high = share_interval(mine[places], groups)
        row: dict[str, Any] = {
            "set": name,
            "asked_in": direction.asked_in,
            "answered_in": direction.answered_in,
            "judge": direction.judge,
            "questions": len(places),
            "accuracy": float(mine[places].mean()),
            "low": low,
            "high": high,
            "by_kind": _by_kind(chosen, mine[places]),
            "constant": best_constant(chosen),
        }
        if its is not None:
            row["base"] = float(its[places].mean())
            row["base_low"], row["base_high"] = share_interval(its[places], groups)
            row["difference"] = row["accuracy"] - row["base"]
            low, high = difference_interval(mine[places] - its[places], groups)
            row["difference_low"], row["difference_high"] = low, high
        rows.append(row)
    return rows


def _by_kind(questions: Sequence[Question], right: FloatArray) -> Mapping[str, float]:
    kinds = dict.fromkeys(question.kind for question in questions)
    return {
        kind: float(np.mean([value for question, value in zip(questions, right, strict=True) if question.kind == kind]))
        for kind in kinds
    }
