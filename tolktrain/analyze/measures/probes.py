"""Linear probes: what a linear map of a word's state tells about its last unit, the word itself, and the next word.

A probe is ridge regression of the classes' indicators on standardized states, which follows from sums: with the
correlation matrix C of the states, and their covariance B with the indicators, its weights are (C + a I)^-1 B. The
class with the largest value is the answer. It is fitted on words of some texts, and tested on words of other texts.
The control is fitted on the same words with their labels shuffled.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel, Task, random_order
from tolktrain.analyze.sample import NONE
from tolktrain.data.sequences import IntArray

RIDGE = 0.01  # a; the mean of the eigenvalues of C is 1
_MOST_CLASSES = 200  # the most frequent labels; words with other labels belong to no class
_TEST_SHARE = 0.25
_MOST_TESTED = 1000  # words whose states are kept


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of the words of the sample for a question, NONE without one: int64 [N]."""

    true: IntArray
    shuffled: IntArray  # equal to `true` for words that are tested
    num_classes: int
    chance: float | None  # accuracy of the most frequent class of the fitted words


def split_by_text(texts: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    """Numbers of the words that probes are fitted on, and of those that they are tested on. No text is in both parts.

    Args:
        texts: [N] equal numbers for words of the same text.
        seed: of the draw.
    """
    tested: list[IntArray] = []
    count = 0
    number = int(texts.max()) + 1
    for text in random_order(number, seed, "probes")[: number - 1]:
        if count >= _TEST_SHARE * len(texts):
            break
        tested.append(np.flatnonzero(texts == text))
        count += len(tested[-1])
    test = np.concatenate([*tested, np.zeros(0, np.int64)]).astype(np.int64)
    return np.setdiff1d(np.arange(len(texts)), test), test[:_MOST_TESTED]


def label(values: IntArray, fitted: IntArray, tested: IntArray, seed: int, purpose: str) -> Labels:
    """The most frequent values of the fitted words as classes."""
    known = values[fitted][values[fitted] != NONE]
    names, counts = np.unique(known, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")][:_MOST_CLASSES]
    classes = {int(name): number for number, name in enumerate(names)}
    true = np.array([classes.get(int(value), NONE) for value in values], np.int64)
    shuffled = true.copy()
    shuffled[fitted] = true[fitted][random_order(len(fitted), seed, f"probes/{purpose}")]
    in_class = true[tested][true[tested] != NONE]
    return Labels(true, shuffled, len(names), float((in_class == 0).mean()) if len(in_class) else None)


class RidgeSums:
    """Sums for ridge regression of indicators on states. Memory: D^2 + C D numbers in float64."""

    def __init__(self, width: int, num_classes: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self._count = 0
        self._origin: Tensor | None = None
        self._sum = zeros(width)
        self._squares = zeros(width, width)
        self._by_class = zeros(num_classes, width)
        self._counts = zeros(num_classes)

    def add(self, states: Tensor, classes: Tensor) -> None:
        """States [n, D], and their classes, of which there may be several in columns; NONE for none: int64 [n, q]."""
        if not len(states):
            return
        states = states.double()
        self._origin = states.mean(dim=0) if self._origin is None else self._origin
        states = states - self._origin
        self._count += len(states)
        self._sum += states.sum(dim=0)
        self._squares += states.T @ states
        for column in classes.unbind(1):
            known = column != NONE
            self._by_class.index_add_(0, column[known], states[known])
            self._counts += torch.bincount(column[known], minlength=len(self._counts))

    def predict(self, states: Tensor) -> Tensor:
        """The value of each class for states [n, D]: float64 [n, C]."""
        assert self._origin is not None
        mean = self._sum / self._count
        covariance = self._squares / self._count - torch.outer(mean, mean)
        scale = covariance.diagonal().clamp(min=0).sqrt()
        # A coordinate that does not vary says nothing; rounding must not be divided by rounding.
        scale = torch.where(scale > 1e-7 * scale.max(), scale, torch.inf)
        correlation = covariance / torch.outer(scale, scale)
        shares = self._counts / self._count
        response = (self._by_class / self._count - torch.outer(shares, mean)) / scale
        eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        weights = torch.linalg.solve(correlation + RIDGE * eye, response.T)
        return (states.double() - self._origin - mean) / scale @ weights + shares


class Probes(Measure):
    """Accuracies of linear probes of the states of both modalities."""

    title = "Linear probes"
    needs = frozenset({"words"})
    panels = (
        Panel(
            "linear probes of speech, accuracy",
            (
                Curve("speech_unit", "last unit", "ink"),
                Curve("speech_word", "word", "speech"),
                Curve("speech_next", "next word", "third"),
                Curve("speech_word_shuffled", "word, labels shuffled", "muted", is_control=True),
            ),
        ),
        Panel(
            "linear probes of text, accuracy",
            (
                Curve("text_word", "word", "text"),
                Curve("text_next", "next word", "third"),
                Curve("text_word_shuffled", "word, labels shuffled", "muted", is_control=True),
            ),
        ),
    )
    headline = (
        ("speech_unit", "probe unit", "share"),
        ("speech_word", "probe word", "share"),
        ("speech_next", "probe next", "share"),
    )

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        sample = task.sample
        fitted, self._tested = split_by_text(sample.texts, task.seed)
        values = {"unit": sample.units, "word": sample.types, "next": sample.next_types}
        self._labels = {name: label(column, fitted, self._tested, task.seed, name) for name, column in values.items()}
        self._is_fitted = np.isin(np.arange(sample.num_words), fitted)
        self._place = np.full(sample.num_words, NONE)
        self._place[self._tested] = np.arange(len(self._tested))
        # One regression answers all questions, true and shuffled: their classes follow each other.
        columns, self._ranges, total = [], {}, 0
        for name, labels in self._labels.items():
            for kind, column in (("", labels.true), ("_shuffled", labels.shuffled)):
                columns.append(np.where(column == NONE, NONE, column + total))
                self._ranges[name + kind] = (total, total + labels.num_classes)
                total += labels.num_classes
        self._columns = np.stack(columns, axis=1)
        self._num_classes = total
        self._sums: dict[tuple[str, str], RidgeSums] = {}
        self._kept: dict[tuple[str, str], Tensor] = {}

    def add_words(self, layer: str, text: Tensor, speech: Tensor, words: IntArray) -> None:
        """Add the fitted words, and keep the tested ones."""
        fitted = torch.from_numpy(self._is_fitted[words]).to(text.device)
        classes = torch.from_numpy(self._columns[words]).to(text.device)
        place = torch.from_numpy(self._place[words]).to(text.device)
        tested = place != NONE
        for side, states in (("text", text), ("speech", speech)):
            key, width = (layer, side), states.shape[1]
            if key not in self._sums:
                self._sums[key] = RidgeSums(width, self._num_classes, states.device)
                self._kept[key] = states.new_zeros((len(self._tested), width), dtype=torch.float32)
            self._sums[key].add(states[fitted], classes[fitted])
            self._kept[key][place[tested]] = states[tested].float()

    def result(self) -> Numbers:
        """`fitted` and `tested` words; `classes` and `chance`, the accuracy of the most frequent class, by question. By
        layer: SIDE`_`QUESTION and SIDE`_`QUESTION`_shuffled`, with the questions `unit` (of speech only), `word` and
        `next`; None if no word can be tested."""
        layers: dict[str, Numbers] = {layer: {} for layer in self.task.layers}
        for (layer, side), sums in self._sums.items():
            values = sums.predict(self._kept[layer, side])
            for name, labels in self._labels.items():
                if side == "text" and name == "unit":
                    continue
                true = torch.from_numpy(labels.true[self._tested]).to(values.device)
                for kind in ("", "_shuffled"):
                    begin, end = self._ranges[name + kind]
                    right = (values[:, begin:end].argmax(dim=1) == true)[true != NONE].double()
                    layers[layer][f"{side}_{name}{kind}"] = float(right.mean()) if len(right) else None
        return {
            "fitted": int(self._is_fitted.sum()),
            "tested": len(self._tested),
            "classes": {name: labels.num_classes for name, labels in self._labels.items()},
            "chance": {name: labels.chance for name, labels in self._labels.items()},
            "layers": layers,
        }


MEASURE = Probes
