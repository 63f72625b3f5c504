"""Questions with several choices: sets of items by the modality of question and choices, judged by likelihood and by
the answers that a model generates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tolktrain.evaluate.benchmarks.base import (
    AudioFile,
    ItemSet,
    Measure,
    Modality,
    Pair,
    Question,
    Segment,
    Source,
)

RULES = ("continuation_mean", "continuation_sum")
DIRECTIONS: tuple[tuple[Modality, Modality], ...] = (
    ("speech", "text"),
    ("speech", "speech"),
    ("text", "text"),
    ("text", "speech"),
)


@dataclass(frozen=True)
class Asked:
    """A question as a benchmark has it; in text, in speech, or in both."""

    id: str
    texts: Mapping[str, str]  # of the choices by label
    answer: str  # label
    text: str | None = None
    audio: AudioFile | None = None
    recordings: Mapping[str, AudioFile] = field(default_factory=dict)  # of all choices, or of none
    voice: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def sets_of(
    name: str,
    asked: Sequence[Asked],
    directions: Sequence[tuple[Modality, Modality]],
    measures: tuple[Measure, ...] = (Measure("accuracy", choice=True),),
) -> list[ItemSet]:
    """A set for each direction in which there are questions, with those that have what it needs.

    Answers that are generated are those to the questions of the directions to text.
    """
    found = []
    for source, target in directions:
        items: dict[str, tuple[Segment, ...]] = {}
        pairs: list[Pair] = []
        questions = []
        for one in asked:
            prompt: Source | None = one.text if source == "text" else one.audio
            choices: Mapping[str, Source] = one.texts if target == "text" else one.recordings
            if prompt is None or not choices:
                continue
            segment = Segment("prompt", source, prompt)
            ids = {label: f"{one.voice}/{one.id}/{label}".lstrip("/") for label in choices}
            for label, choice in choices.items():
                items[ids[label]] = (segment, Segment("continuation", target, choice))
            pairs += [
                Pair(one.id, ids[one.answer], ids[label], one.voice, one.labels)
                for label in choices
                if label != one.answer
            ]
            if target == "text":
                questions.append(Question(one.id, segment, one.texts, one.answer, one.voice, one.labels))
        if pairs:
            title = f"{name}, {source} to {target}" if name else f"{source} to {target}"
            found.append(
                ItemSet(title, items, tuple(pairs), measures, RULES, is_exchange=True, questions=tuple(questions))
            )
    return found
