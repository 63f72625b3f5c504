"""One forward pass per batch: the states at the marked positions, handed to the measures layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tolktrain.analyze.kinds import token_kinds
from tolktrain.analyze.layers import LayerStates, walk
from tolktrain.analyze.measures.base import Measure, Need, Task
from tolktrain.analyze.moments import PairMoments
from tolktrain.analyze.sample import SPAN_WORDS, Passage, Span
from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import IntArray
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.errors import UserError
from tolktrain.evaluate.scoring import padded
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Marks:
    """Positions of a batch, in order."""

    rows: IntArray
    positions: IntArray

    def states(self, hidden: Tensor) -> Tensor:
        """Of [T, B, D], those at the marks: [n, D]."""
        return hidden[torch.from_numpy(self.positions).to(hidden.device), torch.from_numpy(self.rows).to(hidden.device)]


class Observation:
    """Runs a model over the sample, and hands its states to the measures."""

    def __init__(
        self,
        model: SmolTolk,
        task: Task,
        measures: Mapping[str, Measure],
        moments: Mapping[str, PairMoments],
        device: torch.device,
        text_eos: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """`moments` are those of the task; `progress` is called with the number of sequences done, and their total."""
        self._model = model
        self._task = task
        self._measures = list(measures.values())
        self._moments = moments
        self._device = device
        self._text_eos = text_eos
        self._progress = progress
        self._layers = frozenset(task.layers)
        self._needs: frozenset[Need] = frozenset().union(*(measure.needs for measure in self._measures))
        self._done = 0

    def run(self, batch_tokens: int) -> None:
        """Everything that the measures need, in batches of about `batch_tokens` positions.

        Raises:
            UserError: a state is not a finite number.
        """
        sample = self._task.sample
        passages = sample.passages if self._needs & {"words", "moments", "selector"} else ()
        spans = sample.spans if "spans" in self._needs else ()
        total = (2 + ("selector" in self._needs)) * len(passages) + 2 * (SPAN_WORDS + 1) * len(spans)
        for group in _groups(passages, lambda passage: self._sequences(passage), batch_tokens):
            self._passages(group)
            self._progress(self._done, total)
        numbers = range(len(spans))
        for chosen in _groups(numbers, lambda number: [*spans[number].text, *spans[number].speech], batch_tokens):
            self._spans([spans[number] for number in chosen], np.array(chosen, np.int64))
            self._progress(self._done, total)

    def _sequences(self, passage: Passage) -> list[TokenSequence]:
        more = [passage.interleaved] if "selector" in self._needs else []
        return [passage.text, passage.speech, *more]

    def _passages(self, passages: Sequence[Passage]) -> None:
        groups = [self._sequences(passage) for passage in passages]
        batch, lengths = self._batch(groups)
        width = len(groups[0])
        text, speech = (
            _Marks(
                np.concatenate([np.full(len(p.words), width * n + side) for n, p in enumerate(passages)]),
                np.concatenate([(p.text_ends, p.speech_ends)[side] for p in passages]),
            )
            for side in range(2)
        )
        words = np.concatenate([passage.words for passage in passages])
        kinds = token_kinds(batch.tokens[:, 0], batch.speech_in, lengths, self._task.architecture, self._text_eos)
        for layer in self._walk(batch):
            if layer.probs is not None and "selector" in self._needs:
                mixed = list(range(2, len(lengths), width))
                for measure in self._measures:
                    measure.add_selector(kinds[mixed], layer.probs[:, mixed])
            if layer.name not in self._layers:
                continue
            pair = self._finite(text.states(layer.hidden), layer), self._finite(speech.states(layer.hidden), layer)
            if "moments" in self._needs:
                self._moments[layer.name].add(*pair)
            for measure in self._measures:
                if "words" in measure.needs:
                    measure.add_words(layer.name, *pair, words)

    def _spans(self, spans: Sequence[Span], numbers: IntArray) -> None:
        batch, _ = self._batch([[*span.text, *span.speech] for span in spans])
        ends = np.array([[*span.text_ends, *span.speech_ends] for span in spans], np.int64)
        marks = _Marks(np.arange(ends.size), ends.reshape(-1))
        for layer in self._walk(batch):
            if layer.name not in self._layers:
                continue
            states = self._finite(marks.states(layer.hidden), layer)
            states = states.view(len(spans), 2, SPAN_WORDS + 1, states.shape[1])
            for measure in self._measures:
                if "spans" in measure.needs:
                    measure.add_spans(layer.name, states[:, 0], states[:, 1], numbers)

    def _batch(self, groups: Sequence[Sequence[TokenSequence]]) -> tuple[Batch, Tensor]:
        """The sequences of all groups, and the number of input tokens of each."""
        sequences = [sequence for group in groups for sequence in group]
        longest = max(sequence.tokens.shape[1] for sequence in sequences)
        self._done += len(sequences)
        lengths = torch.tensor([min(sequence.length, longest - 1) for sequence in sequences])
        return collate([padded(sequence, longest, self._text_eos) for sequence in sequences]), lengths

    def _walk(self, batch: Batch) -> Iterator[LayerStates]:
        inputs = ModelInputs.from_batch(batch, every_sequence=True).to(self._device)
        return walk(self._model, inputs)

    @staticmethod
    def _finite(states: Tensor, layer: LayerStates) -> Tensor:
        if not bool(torch.isfinite(states).all()):
            raise UserError(
                f"a state of the {layer.name} is not a finite number; the weights are damaged or training has diverged:"
                " analyze an earlier checkpoint (--step)"
            )
        return states


def _groups(
    items: Sequence[Item], sequences: Callable[[Item], Sequence[TokenSequence]], tokens: int
) -> Iterator[list[Item]]:
    """Consecutive items whose sequences have at most `tokens` positions with padding; at least one item each."""
    group: list[Item] = []
    count, longest = 0, 0
    for item in items:
        own = sequences(item)
        longest = max(longest, *(sequence.tokens.shape[1] for sequence in own))
        if group and (count + len(own)) * longest > tokens:
            yield group
            group, count, longest = [], 0, max(sequence.tokens.shape[1] for sequence in own)
        group.append(item)
        count += len(own)
    if group:
        yield group
