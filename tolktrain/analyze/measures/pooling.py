"""The weights of the layer pooling by the kind of token, on interleaved sequences."""

import numpy as np
import torch
from torch import Tensor

from tolktrain.analyze.kinds import KINDS, PADDING
from tolktrain.analyze.measures.base import Measure, Numbers, Task

_PARTS = 8  # of a sequence


class Pooling(Measure):
    """Mean weights of the selector for each kind of token, and for text and speech along the sequence."""

    title = "Layer pooling"
    needs = frozenset({"selector"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        size = task.architecture.num_layers
        self._sums = np.zeros((len(KINDS), _PARTS, size))
        self._counts = np.zeros((len(KINDS), _PARTS), np.int64)

    def add_selector(self, kinds: Tensor, probs: Tensor) -> None:
        """Add the weights of each position."""
        kinds, length = kinds.T, kinds.shape[1]
        parts = (torch.arange(length) * _PARTS // length)[:, None].expand_as(kinds)
        counted = kinds != PADDING
        rows = (kinds * _PARTS + parts)[counted]
        sums = torch.zeros(len(KINDS) * _PARTS, probs.shape[2], dtype=torch.float64)
        sums.index_add_(0, rows, probs.cpu()[counted].double())
        self._sums += sums.view(self._sums.shape).numpy()
        self._counts += torch.bincount(rows, minlength=len(sums)).view(self._counts.shape).numpy()

    def result(self) -> Numbers:
        """`static`: weights of the layers, or None. `kinds`: mean weights by the kind of the input token; None without
        a selector, or without such a token. `counts` of the kinds. `parts`: for `text` and `speech`, the means in each
        eighth of a sequence."""
        counts = self._counts.sum(axis=1)
        return {
            "static": self.task.static_weights,
            "kinds": {kind: _mean(self._sums[n].sum(axis=0), counts[n]) for n, kind in enumerate(KINDS)},
            "counts": dict(zip(KINDS, counts.tolist(), strict=True)),
            "parts": {
                kind: [_mean(self._sums[n, part], self._counts[n, part]) for part in range(_PARTS)]
                for n, kind in enumerate(KINDS)
                if kind in ("text", "speech")
            },
            "layers": {},
        }


def _mean(total: np.ndarray, count: int) -> list[float] | None:
    return (total / count).tolist() if count else None


MEASURE = Pooling
