"""Random weights that depend on the seed and the canonical name only, so that all layouts start with equal values."""

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor

from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import Initial, LayeredModel, Shape, parameter_views
from tolktrain.vocabulary import SPECIAL_TEXT_IDS

TEXT_TABLE = "text_embedding.weight"


def name_generator(seed: int, name: str) -> torch.Generator:
    """The random generator of one canonical parameter."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def initial_value(name: str, shape: Shape, initial: Initial, seed: int, std: float, num_layers: int) -> Tensor:
    """Float32 initial value of one canonical parameter.

    Matrices and tables are normal with standard deviation `std`, divided by sqrt(2 * num_layers) for the projections
    that write to the residual stream: there are two in each layer, so the variance of their sum does not grow.
    """
    if initial == "ones":
        return torch.ones(shape)
    if initial == "zeros":
        return torch.zeros(shape)
    scale = std / (2 * num_layers) ** 0.5 if initial == "residual output" else std
    return torch.empty(shape).normal_(0.0, scale, generator=name_generator(seed, name))


def initial_text_table(sizes: Architecture, seed: int, text_rows: Tensor | None = None) -> Tensor:
    """Float32 initial value of the text table [V_t + specials, D].

    The rows of the named special tokens are the mean of those of text, so that they begin as an average word; the
    others have the values that they have without named tokens.

    Args:
        sizes: of the model.
        seed: of the rows that are drawn.
        text_rows: [V_t, D] of a pretrained table; drawn if absent.
    """
    shape = (sizes.text_vocab_size + SPECIAL_TEXT_IDS, sizes.hidden_size)
    table = initial_value(TEXT_TABLE, shape, "normal", seed, sizes.initializer_range, sizes.num_layers)
    if text_rows is not None:
        table[: sizes.text_vocab_size] = text_rows
    if not sizes.special_tokens:
        return table
    mean = table[: sizes.text_vocab_size].double().mean(dim=0, keepdim=True).float()
    return torch.cat((table, mean.expand(len(sizes.special_tokens), -1)))


def initialize_parameters(model: LayeredModel, seed: int, skip: Collection[str] = ()) -> None:
    """Set every parameter, except those whose canonical names are all in `skip`."""
    sizes = model.architecture
    parameters = dict(model.named_parameters())
    for key, view in parameter_views(model).items():
        if set(view.names) <= set(skip):
            continue
        pairs = zip(view.names, view.shapes, strict=True)
        scale = (seed, sizes.initializer_range, sizes.num_layers)
        values = {
            name: initial_text_table(sizes, seed)
            if name == TEXT_TABLE
            else initial_value(name, shape, view.initial, *scale)
            for name, shape in pairs
        }
        with torch.no_grad():
            parameters[key].copy_(view.join(values, model.share))
