"""Parts of a training step: what the tables of `tolktrain bench --count` have a line for."""

from torch import nn

from tolktrain.cluster.device_models import ATTENTION, ATTENTION_BACKWARD, PRODUCT
from tolktrain.model.embedding import Embedding
from tolktrain.model.heads import Heads, TableHead
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, OutputAdapterLayer
from tolktrain.model.pooling import LayerPooling

REST, OPTIMIZER = "rest", "optimizer"
UNSEEN = "unseen"  # launches of an operator of ours that the counter has not seen: it does not know what they move
_REGIONS: tuple[tuple[type[nn.Module], str], ...] = (
    (InputAdapterLayer, "input adapter"),
    (OutputAdapterLayer, "layer"),
    (BackboneLayer, "layer"),
    (FinalNorm, "layer"),
    (LayerPooling, "pooling"),
    (Embedding, "embeddings"),
    (Heads, "heads"),
)
_BY_NAME = {
    "norms": ("norm_kernel", "norm_backward_kernel", "sum_shares_kernel"),
    "gated activation": ("swiglu_kernel", "swiglu_backward_kernel"),
    "rotation": ("split_heads_kernel", "rotate_heads_kernel", "join_heads_kernel"),
    "embeddings": ("embed_kernel", "collect_kernel", "merge_kernel", "split_kernel"),
    "additions": ("add", "add_"),
    "copies": (
        *("clone", "copy_", "cat", "constant_pad_nd", "slice_backward", "_to_copy", "contiguous", "fill_", "zero_"),
        *("zeros", "new_zeros", "zeros_like", "split_with_sizes_copy"),
    ),
}
_PART_OF_NAME = {name: part for part, names in _BY_NAME.items() for name in names}


def region_of(name: str, module: nn.Module) -> str | None:
    """The region of the model that a module is; None for modules inside of one. `name` is its place in the model."""
    if isinstance(module, TableHead):
        return "text head" if name.rpartition(".")[2] == "text" else "speech heads"
    return next((region for kind, region in _REGIONS if isinstance(module, kind)), None)


def part_of(region: str, name: str, kind: str) -> str:
    """The part of an operation.

    Args:
        region: of the model, or what happens outside of it.
        name: of the operator or kernel.
        kind: of its work.
    """
    if region not in ("layer", "input adapter", "heads", REST):
        return region
    if kind in (PRODUCT, ATTENTION, ATTENTION_BACKWARD) and region != REST:
        what = "linears" if kind == PRODUCT else "attention"
        return f"input adapter {what}" if region == "input adapter" else what
    if region == "heads":
        return "scored rows"
    part = _PART_OF_NAME.get(name, REST)
    return "norms" if name == "sum" and region != REST else part
