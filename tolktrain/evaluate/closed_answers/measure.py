"""The directions in which questions are asked and answered, and the figures of a model in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tolktrain.data.strategies.base import Modality
from tolktrain.evaluate.closed_answers.questions import Question
from tolktrain.evaluate.closed_answers.score import best_constant, first_candidate, likeliest, prompt, score_candidates
from tolktrain.evaluate.intervals import difference_interval, share_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.generate.decoding import Decoder
from tolktrain.generate.sampling import Sampling, TextLimits, sample_text
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

Judge = Literal["exact match", "likelihood"]
MOST_WRITTEN = 16  # text ids of an answer
_TOGETHER = 16  # questions
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
        self._model = model
        self._vocabulary = vocabulary
        self._decode = decode
        self._window = window

    def answer(self, questions: Sequence[Question], direction: Direction, touch: Callable[[], None]) -> Answers:
        """The answers to all questions; `touch` is called from time to time. Raises `UserError` as
        `score_candidates` does."""
        chosen: list[int | None] = []
        texts: list[str] = []
        # Questions of similar lengths together: those of a batch are padded to the longest.
        order = sorted(range(len(questions)), key=lambda place: len(questions[place].asked.units))
        for begin in range(0, len(order), _TOGETHER):
            part = [questions[place] for place in order[begin : begin + _TOGETHER]]
            decoder = make_decoder(self._model, direction.answered_in, self._window)
            if direction.judge == "exact match":
                written = self._written(decoder, part, direction.asked_in)
                texts += written
                chosen += [first_candidate(text, question) for text, question in zip(written, part, strict=True)]
            else:
                scores = score_candidates(decoder, part, direction.asked_in, direction.answered_in, self._vocabulary)
                chosen += [likeliest(row) for row in scores]
            touch()
        back = np.argsort(order).tolist()
        return Answers(tuple(chosen[place] for place in back), tuple(texts[place] for place in back if texts))

    def _written(self, decoder: Decoder, questions: Sequence[Question], asked_in: Modality) -> list[str]:
        contexts = [prompt(question, asked_in, self._vocabulary) for question in questions]
        written = sample_text(decoder, contexts, self._vocabulary, _GREEDY, TextLimits(MOST_WRITTEN, 1))
        return [self._decode([token for token in ids if token != self._vocabulary.text_eos]) for ids in written]


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
