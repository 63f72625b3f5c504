"""The carrier between two pipeline stages, as one tensor.

Everything that follows from the batch (angles, runs, scored rows) is made anew on each stage, which reads the same
batch. So a single tensor of one shape travels per micro batch, and its gradient comes back in a single backward pass.
"""

import torch
from torch import Tensor

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.transformer import AttentionContext, rotary_angles


def pack_carrier(carrier: Carrier) -> Tensor:
    """What the next stage needs: [n, T', B, D], the states kept for the pooling, `hidden`, and e for the residual.

    Stages are cut before a backbone layer or before the final norm, where the carrier holds nothing else.
    """
    assert carrier.speech is None and carrier.pooled is None, "cut inside an adapter"
    states = (
        carrier.states if carrier.states and carrier.states[-1] is carrier.hidden else (*carrier.states, carrier.hidden)
    )
    return torch.stack(states if carrier.embedded is None else (*states, carrier.embedded))


def unpack_carrier(architecture: Architecture, packed: Tensor, inputs: ModelInputs, num_layers: int) -> Carrier:
    """The inverse, behind `num_layers` layers of the backbone.

    Args:
        architecture: of the whole model.
        packed: [n, T', B, D].
        inputs: of the same micro batch.
        num_layers: of the backbone, done so far.
    """
    context = AttentionContext(*rotary_angles(architecture, inputs.sequence_length, packed.device))
    slices = list(packed.unbind())
    embedded = None
    if architecture.residual:
        embedded = slices.pop()
    num_states = 0
    if architecture.layer_pooling != "none":
        num_states = min(num_layers, architecture.num_layers - 1)
    return Carrier(inputs, context, hidden=slices[-1], embedded=embedded, states=tuple(slices[:num_states]))
