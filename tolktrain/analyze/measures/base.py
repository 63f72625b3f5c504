"""What a measure consists of: sums over batches of states, and the numbers and curves that follow from them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from tolktrain.analyze.moments import PairMoments
from tolktrain.analyze.sample import Sample
from tolktrain.data.sequences import IntArray
from tolktrain.model.architecture import Architecture

Need = Literal["words", "moments", "spans", "selector"]
Colour = Literal["text", "speech", "third", "ink", "muted"]
Scale = Literal["share", "degrees", "rank"]
Numbers = dict[str, Any]  # plain values, fit for JSON


@dataclass(frozen=True)
class Curve:
    """A number of each layer, drawn as a line."""

    key: str  # in the numbers of a layer
    label: str
    colour: Colour
    is_control: bool = False  # drawn dotted, and for the trained model only


@dataclass(frozen=True)
class Panel:
    """Curves over the layers that share an axis."""

    title: str
    curves: tuple[Curve, ...]
    scale: Scale = "share"


@dataclass(frozen=True)
class Task:
    """What all measures of a model share."""

    sample: Sample
    architecture: Architecture
    layers: tuple[str, ...]  # in the order of computation
    dimensions: int  # k of subspaces
    seed: int
    moments: Mapping[str, PairMoments]  # of text and speech states by layer; filled if a measure needs them
    text_logits: Callable[[str, Tensor], Tensor]  # layer and states [n, D] to logits [n, V_t]
    static_weights: list[float] | None  # of the pooling's layers


class Measure(ABC):
    """A measure. Its file is `tolktrain/analyze/measures/NAME.py` and defines its class as `MEASURE`.

    What is kept between batches must not grow with the number of batches, except up to a limit.
    """

    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]]  # batches that it wants to see
    panels: ClassVar[tuple[Panel, ...]] = ()
    headline: ClassVar[tuple[tuple[str, str, Scale], ...]] = ()  # keys of a layer in the terminal, and their heads

    def __init__(self, task: Task) -> None:
        self.task = task

    def add_words(self, layer: str, text: Tensor, speech: Tensor, words: IntArray) -> None:  # noqa: B027
        """States [n, D] at the ends of the words of these numbers [n] in the sample, in both modalities."""

    def add_spans(self, layer: str, text: Tensor, speech: Tensor, spans: IntArray) -> None:  # noqa: B027
        """States [n, SPAN_WORDS + 1, D] at the ends of single words and of the whole, each read alone."""

    def add_selector(self, kinds: Tensor, probs: Tensor) -> None:  # noqa: B027
        """The kinds of tokens of interleaved sequences, int64 [B, T] on the host (`analyze.kinds`), and the selector's
        weights [T, B, L]."""

    @abstractmethod
    def result(self) -> Numbers:
        """`layers`: numbers by layer; and numbers that belong to no layer."""


def random_order(count: int, seed: int, purpose: str) -> IntArray:
    """A permutation that depends on the arguments only."""
    return np.random.default_rng([seed, *purpose.encode()]).permutation(count)


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of one column in each row, from 1: float64 [n]; equal scores share the mean of their ranks.

    Args:
        scores: [n, m], higher is better.
        targets: int64 [n], a column of each row.
    """
    own = scores.gather(1, targets[:, None])
    better, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1
    return 1 + better.double() + equal.double() / 2


def top_share(scores: Tensor, targets: Tensor, most: int) -> Tensor:
    """Whether the target is among the `most` best of each row, float64 [n]; its chance of it where scores are equal."""
    own = scores.gather(1, targets[:, None])
    better, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1)
    return ((most - better).double() / equal.double()).clamp(0, 1)
