"""The number of parameters of a model, from its architecture."""

from collections import Counter

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_costs
from tolktrain.model.cost.work import StepCounts


def count_by_group(architecture: Architecture) -> dict[str, int]:
    """Elements of the whole model's parameters in each group; a tied table counts once."""
    counts: Counter[str] = Counter(backbone=0, speech=0, pooling=0)
    for layer in layer_costs(architecture, StepCounts()):
        counts.update(layer.sizes)
    return dict(counts)
