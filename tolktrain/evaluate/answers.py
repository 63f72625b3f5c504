"""Answers that a tuned model generates to the questions of a benchmark, judged by exact match."""

import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.config import Config
from tolktrain.data.records import USER
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Audio, ItemSet, Measure, Pair, Question
from tolktrain.evaluate.scoring import Share
from tolktrain.evaluate.tables import measured_values
from tolktrain.files.writing import replace_file
from tolktrain.generate.chat.dialogue import ChatLimits, Dialogue
from tolktrain.generate.chat.forms import Form, answers, tuned_form
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.tensor_ranks import make_mixed_decoder
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.units.base import Frames

RULE = "exact_match"
_LENGTH = 64  # text ids of an answer
_GREEDY = Sampling(temperature=0.0, top_k=1, seed=0)
_ANSWER_IS = re.compile(r"\banswer\s*(?:is\b\s*:?|:)", re.IGNORECASE)


@dataclass(frozen=True)
class Judged:
    """An answer, and the choice that it names."""

    id: str
    voice: str
    answer: str  # the label of the correct choice
    text: str
    choice: str | None  # label; None if the answer names none
    ended: str  # as `Answer.ending`, or "no room" if the question leaves no room for an answer


def named_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that an answer names, or None.

    What follows the last "answer is" or "answer:" counts if there is one, else the whole answer. It names a choice if,
    without case, punctuation and a leading "option" or "choice", it is the label, or the text of exactly one choice, or
    if it begins with the label and ".", ")" or ":", or has the label in parentheses at its begin.
    """
    found = [match.end() for match in _ANSWER_IS.finditer(text)]
    said = re.sub(r"^\W*(option|choice)\b", "", text[found[-1] :] if found else text, flags=re.IGNORECASE).strip()
    plain = _plain(said)
    by_label = {_plain(label): label for label in choices}
    if plain in by_label:
        return by_label[plain]
    same = [label for label, choice in choices.items() if _plain(choice) == plain]
    if len(same) == 1:
        return same[0]
    begin = re.match(r"\(?\s*(\w+)\s*[.):]", said)
    return by_label.get(_plain(begin[1])) if begin else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().translate(str.maketrans("", "", string.punctuation)).split())


class Answerer:
    """Lets a model answer the questions of benchmarks, each in a conversation of its own, by the likeliest ids."""

    def __init__(self, model: SmolTolk, config: Config, tokenizers: Mapping[str, str | None]) -> None:
        self._continuer = Continuer(model, config, dict(tokenizers))
        tuned = tuned_form(config)
        self.form: Form = tuned if tuned == "chain" else "text"
        self._can = answers(model.architecture) and config.data.text_tokenizer is not None

    @property
    def can(self) -> bool:
        """Whether the model has tokens of roles, and a text tokenizer."""
        return self._can

    def answer(
        self,
        found: ItemSet,
        units: Mapping[Audio, Frames],
        share: Share,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Judged]:
        """The answers to the questions of a set whose recordings have units, in their order, on every rank."""
        questions = [one for one in found.questions if isinstance(one.asked.source, str) or one.asked.source in units]
        decoder = make_mixed_decoder(self._continuer.model, self._continuer.window)

        def own() -> list[Judged]:
            judged = []
            for place in range(share.rank, len(questions), share.world_size):
                limits = ChatLimits(_LENGTH)
                dialogue = Dialogue(self._continuer, decoder, self.form, _GREEDY, limits, place, speaks=False)
                judged.append(self._judged(questions[place], dialogue, units))
                progress(place + 1, len(questions))
            return judged

        parts = share.gather(own)
        return [parts[place % share.world_size][place // share.world_size] for place in range(len(questions))]

    def _judged(self, question: Question, dialogue: Dialogue, units: Mapping[Audio, Frames]) -> Judged:
        source = question.asked.source
        if isinstance(source, str):
            turn = Turn(USER, np.array(self._continuer.encode_text(source, question.id), np.int64))
        else:
            frames = units[source].astype(np.int64)  # type: ignore[index]
            turn = Turn(USER, units=frames, run_lengths=np.ones(len(frames), np.int64))
        dialogue.add(turn)
        try:
            said = dialogue.answer()
        except UserError:  # the question is too long
            return Judged(question.id, question.voice, question.answer, "", None, "no room")
        choice = named_choice(said.text, question.choices)
        return Judged(question.id, question.voice, question.answer, said.text, choice, said.ending)


def rows_of(label: str, found: ItemSet, judged: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """Rows of the table, as those of the likelihoods."""
    labels = {(one.id, one.voice): one.labels for one in found.questions}
    pairs = [Pair(one.id, "", "", one.voice, labels[one.id, one.voice]) for one in judged]
    values = np.array([float(one.choice == one.answer) for one in judged])
    for measure in found.measures:
        own = measured_values(Measure(measure.name, measure.where, measure.by), pairs, values)
        if own is not None:
            row = {"benchmark": label, "set": found.name, "measure": measure.name, "rule": RULE, "ties": 0.0}
            yield row | own | {"published": []}


def remark_of(label: str, found: ItemSet, judged: Sequence[Judged], form: Form) -> str:
    """How the questions were answered, and how many answers could not be judged."""
    none = sum(one.choice is None for one in judged)
    endless = sum(one.ended != "EOS" for one in judged)
    return (
        f"{label}, {found.name}: of {len(judged)} generated answers ({form}), {none} name no choice and count as wrong,"
        f" {endless} did not end by themselves"
    )


def write_answers(path: Path, sets: Mapping[str, Sequence[Judged]]) -> None:
    """A line per answer."""
    lines = [{"set": name} | asdict(one) for name, judged in sets.items() for one in judged]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
