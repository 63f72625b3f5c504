"""What travels from pipeline layer to pipeline layer."""

from dataclasses import dataclass

from torch import Tensor

from tolktrain.model.inputs import ModelInputs
from tolktrain.model.transformer import AttentionContext
from tolktrain_kernels.layer_pooling import PooledLayers


@dataclass(frozen=True)
class Carrier:
    """State between two pipeline layers. Layers return a new one (`dataclasses.replace`)."""

    inputs: ModelInputs
    context: AttentionContext  # causal, for backbone and output adapter
    run_context: AttentionContext | None  # inside runs, for the input adapter; None without speech
    hidden: Tensor  # [T, B, D]
    embedded: Tensor | None = None  # [T, B, D]: e, kept for the residual
    # [N, 1, D]: packed speech on its way through the input adapter; [T, B, D] where that has a dense mask
    speech: Tensor | None = None
    states: tuple[Tensor, ...] = ()  # h_1 .. h_L as far as they are there, each [T, B, D]; kept for the pooling
    pooled: PooledLayers | None = None  # over the S sequences that predict speech: [T, S, ...]
    speech_hidden: Tensor | None = None  # [T, S, D]: on its way through the output adapter
