"""The carrier: the tensors that pass from one pipeline layer to the next; one tensor between pipeline stages.

Everything that follows from the batch (angles, speech segments, scored rows) is recomputed on each stage, which reads
the same batch. So a single tensor of constant shape is sent per micro batch, and its gradient is sent back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.transformer import AttentionContext, rotary_angles
from tolktrain_kernels.documents import Documents
from tolktrain_kernels.layer_pooling import PooledLayers


@dataclass(frozen=True)
class Carrier:
    """State between two pipeline layers. Layers return a new one (`dataclasses.replace`).

    T' is T, or this rank's slice of it under sequence parallelism.
    """

    inputs: ModelInputs
    context: AttentionContext  # causal, or causal inside documents, for backbone and output adapter
    hidden: Tensor  # [T', B, D]; all T positions before the backbone
    embedded: Tensor | None = None  # [T', B, D]: e, kept for the residual
    segment_context: AttentionContext | None = None  # inside speech segments, for the input adapter
    # [N', 1, D]: packed speech inside the input adapter, padded to a multiple of the tensor ranks; or [T', B, D] if the
    # adapter has a dense mask
    speech: Tensor | None = None
    states: tuple[Tensor, ...] = ()  # h_1 .. h_L as far as they are there, each [T', B, D]; kept for the pooling
    pooled: PooledLayers | None = None  # over the S sequences that predict speech: [T', S, ...]
    speech_hidden: Tensor | None = None  # [T', S, D]: inside the output adapter
    update: Tensor | None = None  # [T', B, D]: of the last backbone layer, not yet added to `hidden`
    output_context: AttentionContext | None = None  # of the output adapter, if it is another than `context`

    @property
    def output(self) -> Tensor:
        """The states after the last layer [T', B, D]."""
        return self.hidden if self.update is None else self.hidden + self.update


def causal_contexts(cos: Tensor, sin: Tensor, inputs: ModelInputs) -> tuple[AttentionContext, AttentionContext | None]:
    """The contexts of the backbone, and of the output adapter if that is another, from angles [T, 1, 1, d].

    Positions count from the begin of their document.
    """
    whole = AttentionContext(cos, sin)
    if inputs.documents is None:
        return whole, None

    def inside(documents: Documents) -> AttentionContext:
        angles = (cos.index_select(0, documents.positions), sin.index_select(0, documents.positions))
        return AttentionContext(*angles, documents=documents)

    every, predicting = inputs.documents.every, inputs.documents.predicting
    # Without sequences that predict speech, a single position passes through the output adapter.
    return inside(every), whole if predicting is None else inside(predicting)


def pack_carrier(carrier: Carrier) -> Tensor:
    """The tensor for the next stage: [n, T', B, D], the states for the pooling, the output, and e for the residual.

    Pipeline stages begin at a backbone layer or the final norm, where the carrier contains nothing else.
    """
    assert carrier.speech is None and carrier.pooled is None, "cut inside an adapter"
    is_kept = carrier.update is None and carrier.states and carrier.states[-1] is carrier.hidden
    states = carrier.states if is_kept else (*carrier.states, carrier.output)
    return torch.stack(states if carrier.embedded is None else (*states, carrier.embedded))


def unpack_carrier(architecture: Architecture, packed: Tensor, inputs: ModelInputs, num_layers: int) -> Carrier:
    """The inverse, after `num_layers` layers of the backbone.

    Args:
        architecture: of the whole model.
        packed: [n, T', B, D].
        inputs: of the same micro batch.
        num_layers: of the backbone, done so far.
    """
    context, output_context = causal_contexts(
        *rotary_angles(architecture, inputs.sequence_length, packed.device), inputs
    )
    slices = list(packed.unbind())
    embedded = None
    if architecture.residual:
        embedded = slices.pop()
    num_states = 0
    if architecture.keeps_states:
        num_states = min(num_layers, architecture.num_layers - 1)
    states = tuple(slices[:num_states])
    return Carrier(inputs, context, slices[-1], embedded, states=states, output_context=output_context)
