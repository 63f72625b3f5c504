"""How many parameters a model has, told from its architecture alone."""

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_flops

_GROUPS = {
    "backbone": "backbone",
    "final norm": "backbone",
    "heads": "backbone",  # a text head of its own; the speech heads are the speech tables
    "input adapter": "speech",
    "output adapter": "speech",
    "pooling": "pooling",
}


def count_by_group(architecture: Architecture) -> dict[str, int]:
    """Elements of the whole model's parameters in each group; a tied table counts once."""
    counts: dict[str, int] = {"backbone": 0, "speech": 0, "pooling": 0}
    for layer in layer_flops(architecture, sequence_length=1):
        if layer.kind == "embedding":
            text = architecture.text_table_size * architecture.hidden_size
            counts["backbone"] += text
            counts["speech"] += layer.parameters - text
        else:
            counts[_GROUPS[layer.kind]] += layer.parameters
    return counts
