"""Random weights that depend on the seed and the canonical name alone, so that every layout starts alike."""

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor

from tolktrain.model.parameter_layout import LayeredModel, Shape, parameter_views

# Projections that write into the residual stream: 2 per layer, so their sum keeps its size with this factor.
_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
_ONES = ("norm.weight",)
_ZEROS = ("pooling.layer_weights", "pooling.selector.bias")


def name_generator(seed: int, name: str) -> torch.Generator:
    """The random numbers of one canonical parameter."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def initial_value(name: str, shape: Shape, seed: int, std: float, num_layers: int) -> Tensor:
    """Float32 initial value of one canonical parameter.

    Matrices and tables are normal with standard deviation `std`, divided by sqrt(2 * num_layers) for the projections
    that write into the residual stream; norms are one; layer weights and the selector's bias zero (all layers alike).
    """
    if name.endswith(_ONES):
        return torch.ones(shape)
    if name in _ZEROS:
        return torch.zeros(shape)
    scale = std / (2 * num_layers) ** 0.5 if name.endswith(_RESIDUAL_OUTPUTS) else std
    return torch.empty(shape).normal_(0.0, scale, generator=name_generator(seed, name))


def initialize_parameters(model: LayeredModel, seed: int, skip: Collection[str] = ()) -> None:
    """Set every parameter, except those whose canonical names are all in `skip`."""
    sizes = model.architecture
    parameters = dict(model.named_parameters())
    for key, view in parameter_views(model).items():
        if set(view.names) <= set(skip):
            continue
        pairs = zip(view.names, view.shapes, strict=True)
        values = {n: initial_value(n, s, seed, sizes.initializer_range, sizes.num_layers) for n, s in pairs}
        with torch.no_grad():
            parameters[key].copy_(view.join(values, model.share))
