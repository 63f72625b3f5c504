"""What travels from pipeline layer to pipeline layer."""

from dataclasses import dataclass

from torch import Tensor

from tolktrain.model.inputs import ModelInputs
from tolktrain.model.transformer import AttentionContext
from tolktrain_kernels.layer_pooling import PooledLayers


@dataclass(frozen=True)
class Carrier:
    """State between two pipeline layers. Layers return a new one (`dataclasses.replace`).

    T' is T, or this rank's slice of it under sequence parallelism.
    """

    inputs: ModelInputs
    context: AttentionContext  # causal, for backbone and output adapter
    hidden: Tensor  # [T', B, D]; all T positions before the backbone
    embedded: Tensor | None = None  # [T', B, D]: e, kept for the residual
    run_context: AttentionContext | None = None  # inside runs, for the input adapter
    # [N', 1, D]: packed speech on its way through the input adapter, padded to what tensor ranks can share out; or
    # [T', B, D] where the adapter has a dense mask
    speech: Tensor | None = None
    states: tuple[Tensor, ...] = ()  # h_1 .. h_L as far as they are there, each [T', B, D]; kept for the pooling
    pooled: PooledLayers | None = None  # over the S sequences that predict speech: [T', S, ...]
    speech_hidden: Tensor | None = None  # [T', S, D]: on its way through the output adapter
