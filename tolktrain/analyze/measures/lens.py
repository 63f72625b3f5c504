"""The logit lens: which text the text head reads from states at the ends of spoken words.

The final norm and the text head are applied to the output of each layer (nostalgebraist 2020). The targets are the
first text id of the word that was just heard, and that of the next one. The control is the first id of a random other
word of the sample, which shows what follows from frequency alone. The same of text is a reference for the next word.
"""

import torch
from torch import Tensor

from tolktrain.analyze.layers import OUTPUT_ADAPTER, POOLED
from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel, Task, random_order, ranks, top_share
from tolktrain.analyze.sample import NONE
from tolktrain.data.sequences import IntArray

_TOP = 10
_ROWS = 256  # of logits at a time


class Lens(Measure):
    """Share of words whose target is among the ten best ids, and the geometric mean of its rank."""

    title = "Logit lens"
    needs = frozenset({"words"})
    panels = (
        Panel(
            "logit lens at word ends, among the ten best ids",
            (
                Curve("word_top", "speech: this word", "speech"),
                Curve("next_top", "speech: next word", "third"),
                Curve("text_next_top", "text: next word", "text"),
                Curve("control_top", "speech: a random word", "muted", is_control=True),
            ),
        ),
        Panel(
            "logit lens, geometric mean of the rank",
            (
                Curve("word_rank", "speech: this word", "speech"),
                Curve("next_rank", "speech: next word", "third"),
                Curve("text_next_rank", "text: next word", "text"),
                Curve("control_rank", "speech: a random word", "muted", is_control=True),
            ),
            "rank",
        ),
    )
    headline = (("word_top", "lens word", "share"), ("next_top", "lens next", "share"))

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        sample = task.sample
        control = sample.text_ids[random_order(sample.num_words, task.seed, "lens")]
        self._targets = {"word": sample.text_ids, "next": sample.next_text_ids, "control": control}
        self._layers = [layer for layer in task.layers if layer not in (POOLED, OUTPUT_ADAPTER)]
        self._sums = {layer: dict[str, Tensor]() for layer in self._layers}

    def add_words(self, layer: str, text: Tensor, speech: Tensor, words: IntArray) -> None:
        """Rank the targets."""
        if layer not in self._sums:
            return
        for name, targets in self._targets.items():
            self._add(layer, name, speech, targets[words])
        self._add(layer, "text_next", text, self._targets["next"][words])

    def _add(self, layer: str, name: str, states: Tensor, targets: IntArray) -> None:
        known = torch.from_numpy(targets != NONE).to(states.device)
        columns = torch.from_numpy(targets).to(states.device)[known]
        for rows, wanted in zip(states[known].split(_ROWS), columns.split(_ROWS), strict=True):
            logits = self.task.text_logits(layer, rows)
            hits, logs = top_share(logits, wanted, _TOP).sum(), ranks(logits, wanted).log().sum()
            found = torch.stack((hits, logs, hits.new_tensor(len(wanted))))
            sums = self._sums[layer]
            sums[name] = sums[name] + found if name in sums else found

    def result(self) -> Numbers:
        """By layer, for `word`, `next`, `control` and `text_next`: NAME`_top`, the share among the ten best, and
        NAME`_rank`, the geometric mean of the rank. Pooled states and the output adapter have no text head."""
        layers: dict[str, Numbers] = {}
        for layer, sums in self._sums.items():
            layers[layer] = {}
            for name, found in sums.items():
                hits, logs, count = found.tolist()
                layers[layer] |= {f"{name}_top": hits / count, f"{name}_rank": float(torch.tensor(logs / count).exp())}
        return {"layers": layers}


MEASURE = Lens
