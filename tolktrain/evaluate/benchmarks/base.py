"""What a benchmark consists of: items to score, pairs of them to compare, and how pairs become numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError

Modality = Literal["text", "speech"]
Role = Literal["whole", "prompt", "continuation"]

MOST_NAMED = 5  # names of items in a message


@dataclass(frozen=True)
class AudioFile:
    """A recording in a file."""

    path: Path


@dataclass(frozen=True)
class ParquetAudio:
    """A recording in a cell of a Parquet file: a struct with the field `bytes`."""

    path: Path
    row: int
    column: str


@dataclass(frozen=True, eq=False)
class TokenIds:
    """Ids of the model: text ids, or units of a single codebook; without EOS."""

    ids: npt.NDArray[np.int64]  # [n]


Audio = AudioFile | ParquetAudio
Source = Audio | TokenIds | str  # a string is text to be tokenized


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of an item in one modality."""

    role: Role
    modality: Modality
    source: Source


@dataclass(frozen=True)
class Pair:
    """Two items, of which a model should find the correct one likelier.

    Pairs of one `id` differ in the voice. Their points are averaged first, so that every id counts once; intervals are
    bootstrapped over ids.
    """

    id: str
    correct: str  # id of an item
    incorrect: str
    voice: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)  # such as the type of a sentence


@dataclass(frozen=True)
class Measure:
    """A number of a set of pairs: the mean over ids; with `by`, the unweighted mean over its values of their means.

    With `choice`, the pairs of an id and a voice are a question with several choices, which is answered if the correct
    one beats all others.
    """

    name: str
    where: tuple[str, frozenset[str]] | None = None  # only pairs whose label has one of the values
    by: str | None = None
    choice: bool = False

    def takes(self, pair: Pair) -> bool:
        """Whether the pair counts."""
        return self.where is None or pair.labels.get(self.where[0]) in self.where[1]


@dataclass(frozen=True)
class Published:
    """An accuracy in percent that others have published, with the rule that their code applies."""

    model: str
    set: str  # name of the ItemSet
    measure: str
    rule: str  # as in `evaluate.rules`
    percent: float
    source: str


@dataclass(frozen=True, eq=False)
class Question:
    """A question with several choices, which a model may also answer in its own words."""

    id: str
    asked: Segment  # the prompt
    choices: Mapping[str, str]  # texts by label, such as A
    answer: str  # the label of the correct choice
    voice: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemSet:
    """A split, a part or a direction of a benchmark, for which there are numbers of its own."""

    name: str
    items: Mapping[str, tuple[Segment, ...]]  # by id
    pairs: tuple[Pair, ...]
    measures: tuple[Measure, ...]
    rules: tuple[str, ...]  # that apply unless others are asked for
    submission: str | None = None  # path of the ZeroSpeech submission file, relative to its folder
    # Whether an item is a question and an answer. A model with tokens of roles reads them as turns of a conversation.
    is_exchange: bool = False
    questions: tuple[Question, ...] = ()  # whose generated answers are judged, too


@dataclass(frozen=True)
class Problems:
    """Items that a benchmark should have and has not, or the reverse; each is named."""

    missing: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # in the folder, but not in the gold file: not needed, and not scored
    unreadable: tuple[str, ...] = ()

    def __add__(self, other: "Problems") -> "Problems":
        return Problems(
            self.missing + other.missing,
            self.doubled + other.doubled,
            self.extra + other.extra,
            self.unreadable + other.unreadable,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of each kind."""
        return {name: len(getattr(self, name)) for name in ("missing", "doubled", "extra", "unreadable")}

    def sentence(self, serious: bool) -> str:
        """Counts and first names of the kinds that make a benchmark incomplete, or of the others; "" if none."""
        kinds = ("missing", "doubled", "unreadable") if serious else ("extra",)
        parts = []
        for kind in kinds:
            names = getattr(self, kind)
            if names:
                more = ", ..." if len(names) > MOST_NAMED else ""
                parts.append(f"{len(names)} {kind} ({', '.join(names[:MOST_NAMED])}{more})")
        return ", ".join(parts)


@dataclass(frozen=True)
class Found:
    """A benchmark as read from a folder; only pairs whose items exist are in its sets."""

    sets: tuple[ItemSet, ...]
    problems: Problems
    notes: tuple[str, ...] = ()  # such as splits that cannot be scored, and why


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Its file is `tolktrain/evaluate/benchmarks/NAME.py` and defines it as `BENCHMARK`."""

    name: str
    title: str
    archive: str  # which archive holds it
    read: Callable[[Path], Found]  # raises UserError if the folder holds no such benchmark
    published: tuple[Published, ...] = ()


def list_folder(folder: Path) -> list[str]:
    """Sorted names of the entries of a folder. Raises UserError if it cannot be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); name the folder of the benchmark") from None
