"""Word retrieval: the text vector of a word finds the speech vector of the same word among those of other words."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel, Task, random_order, top_share
from tolktrain.analyze.sample import NONE, Sample
from tolktrain.data.sequences import IntArray

_MOST = 500  # words to choose from

_SIDES = ("text", "speech")
_FIRST, _OTHER = 0, 1


def candidates(sample: Sample, most: int, seed: int) -> IntArray:
    """Words of different types, at most `most`, and another occurrence of each in another text, or NONE: [m, 2]."""
    order = random_order(sample.num_words, seed, "retrieval")
    first: dict[int, int] = {}
    other: dict[int, int] = {}
    for word in order.tolist():
        kind = int(sample.types[word])
        if kind not in first:
            if len(first) < most:
                first[kind] = word
        elif kind not in other and sample.texts[word] != sample.texts[first[kind]]:
            other[kind] = word
    pairs = [(word, other.get(kind, NONE)) for kind, word in first.items()]
    return np.array(pairs, np.int64).reshape(-1, 2)


class Retrieval(Measure):
    """Cosine of vectors centred per modality, among one occurrence of each word.

    The context of both vectors is the same passage, which may help to find each other. So the text of a word is also
    looked for among vectors of speech from other texts.
    """

    title = "Word retrieval"
    needs = frozenset({"words"})
    panels = (
        Panel(
            "word retrieval, first hit",
            (
                Curve("text_to_speech", "text finds speech", "text"),
                Curve("speech_to_text", "speech finds text", "speech"),
                Curve("other_text", "text finds speech of another text", "third"),
                Curve("chance", "chance", "muted", is_control=True),
            ),
        ),
    )
    headline = (("text_to_speech", "found", "share"),)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._pairs = candidates(task.sample, _MOST, task.seed)
        self._places = {int(word): (row, use) for row, pair in enumerate(self._pairs) for use, word in enumerate(pair)}
        self._places.pop(NONE, None)
        self._kept: dict[str, Tensor] = {}  # [m, 2 occurrences, 2 sides, D] float32

    def add_words(self, layer: str, text: Tensor, speech: Tensor, words: IntArray) -> None:
        """Keep the states of the candidates."""
        if layer not in self._kept:
            self._kept[layer] = text.new_zeros((*self._pairs.shape, len(_SIDES), text.shape[1]), dtype=torch.float32)
        for place, word in enumerate(words.tolist()):
            if word in self._places:
                row, use = self._places[word]
                self._kept[layer][row, use] = torch.stack((text[place], speech[place])).float()

    def result(self) -> Numbers:
        """`words` to choose from; `words_other`, those with an occurrence in another text. By layer the shares of first
        hits: `text_to_speech`, `speech_to_text`, `other_text`, `chance`, `chance_other`."""
        has_other = torch.from_numpy(self._pairs[:, _OTHER] != NONE)
        layers = {layer: self._numbers(self._kept[layer], has_other) for layer in self.task.layers}
        return {"words": len(self._pairs), "words_other": int(has_other.sum()), "layers": layers}

    @staticmethod
    def _numbers(kept: Tensor, has_other: Tensor) -> Numbers:
        text, speech = (kept[:, _FIRST, side] for side in range(len(_SIDES)))
        count, others = len(kept), kept[has_other.to(kept.device)]
        return {
            "text_to_speech": _first_hits(text, speech),
            "speech_to_text": _first_hits(speech, text),
            "chance": 1 / count,
            "other_text": _first_hits(others[:, _FIRST, 0], others[:, _OTHER, 1]) if len(others) > 1 else None,
            "chance_other": 1 / len(others) if len(others) > 1 else None,
        }


def _first_hits(queries: Tensor, found: Tensor) -> float:
    """Share of rows [m, D] whose own row of the other matrix has the largest cosine."""
    queries, found = (functional.normalize((part - part.mean(dim=0)).double(), dim=1) for part in (queries, found))
    # Rounded, so that equal vectors have equal cosines.
    cosines = torch.round(queries @ found.T, decimals=9)
    return float(top_share(cosines, torch.arange(len(cosines), device=cosines.device), 1).mean())


MEASURE = Retrieval
