"""The states of a model, layer by layer, in one forward pass."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.embedding import Embedding
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, OutputAdapterLayer
from tolktrain.model.pooling import POOLING_MODES, LayerPooling
from tolktrain.model.smoltolk import SmolTolk

EMBEDDING, INPUT_ADAPTER, POOLED, OUTPUT_ADAPTER = "embedding", "input adapter", "pooled", "output adapter"
LAYER_PREFIX = "layer "


class LayerStates(NamedTuple):
    """The output of a layer."""

    name: str  # as in `layer_names`
    hidden: Tensor  # [T, B, D]
    probs: Tensor | None  # [T, B, L]: the selector's weights, with the layer `pooled` only


def backbone_layer(number: int) -> str:
    """The name of a backbone layer, counted from 1."""
    return f"{LAYER_PREFIX}{number}"


def layer_names(architecture: Architecture, chosen: Collection[int] | None = None) -> list[str]:
    """Layers in the order of computation: embedding, input adapter, backbone layers, pooled, output adapter.

    A part that the model does not have, or that passes its input on unchanged, is left out. The last backbone layer is
    taken after the final norm, as the pooling and the text head take it; `pooled` includes the residual.

    Args:
        architecture: of the model.
        chosen: numbers of backbone layers, from 1; all if None.

    Raises:
        UserError: there is no backbone layer of a chosen number.
    """
    numbers = range(1, architecture.num_layers + 1)
    foreign = sorted(set(chosen or ()) - set(numbers))
    if foreign:
        raise UserError(f"--layers: there is no backbone layer {foreign[0]}; the layers are 1 to {numbers[-1]}")
    names = [EMBEDDING, *([INPUT_ADAPTER] if architecture.input_adapter_layers else [])]
    names += [backbone_layer(number) for number in numbers if chosen is None or number in chosen]
    if architecture.residual or POOLING_MODES[architecture.layer_pooling].has_weights:
        names.append(POOLED)
    return [*names, *([OUTPUT_ADAPTER] if architecture.output_adapter_layers else [])]


@torch.no_grad()
def walk(model: SmolTolk, inputs: ModelInputs) -> Iterator[LayerStates]:
    """The outputs of all layers of `layer_names`, one after the other. The inputs are made with `every_sequence`."""
    state: ModelInputs | Carrier = inputs
    number, last_adapter = 0, model.architecture.output_adapter_layers
    for layer in model.trunk:
        state = layer(state)
        assert isinstance(state, Carrier)
        if isinstance(layer, Embedding):
            yield LayerStates(EMBEDDING, state.hidden, None)
        elif isinstance(layer, InputAdapterLayer) and layer.is_last:
            yield LayerStates(INPUT_ADAPTER, state.hidden, None)
        elif isinstance(layer, BackboneLayer):
            number += 1
            if number < model.architecture.num_layers:
                yield LayerStates(backbone_layer(number), state.output, None)
        elif isinstance(layer, FinalNorm):
            yield LayerStates(backbone_layer(number), state.hidden, None)
        elif isinstance(layer, LayerPooling):
            assert state.pooled is not None
            yield LayerStates(POOLED, state.pooled.pooled, state.pooled.probs)
        elif isinstance(layer, OutputAdapterLayer):
            last_adapter -= 1
            if not last_adapter:
                assert state.speech_hidden is not None
                yield LayerStates(OUTPUT_ADAPTER, state.speech_hidden, None)


def text_logits(model: SmolTolk, layer: str, hidden: Tensor) -> Tensor:
    """The text head on states [n, D] of a layer before or in the backbone: [n, V_t], after the final norm.

    The last layer is normalized already.
    """
    if layer != backbone_layer(model.architecture.num_layers):
        final = next(part for part in model.layers.values() if isinstance(part, FinalNorm))
        hidden = final.norm(hidden)
    return model.heads.text.logits(hidden)
