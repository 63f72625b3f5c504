"""The only import of megatron-core.

All packages import megatron-core through this module. Its first import prints warnings about missing optional packages
that do not concern users, and would import much that is not used: FSDP, optimizers, inference and with them
TensorBoard, sympy and torch's compiler, which take 3 s and 220 MB.
"""

import logging
import warnings

from tolktrain.libraries.compiler import compiling_later
from tolktrain.libraries.imports import deferred

_UNUSED = (
    "megatron.core.distributed",
    "megatron.core.fusions.fused_indices_converter",
    "megatron.core.fusions.fused_pad_routing_map",
    "megatron.core.inference",
    "megatron.core.optimizer",
    "megatron.core.timers",
    "torch.distributed._tensor",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "triton",
)

_extensions = logging.getLogger("torch.utils.cpp_extension")
_level = _extensions.level
_extensions.setLevel(logging.ERROR)
with warnings.catch_warnings(), deferred(*_UNUSED), compiling_later():
    warnings.filterwarnings("ignore", message=r"(Transformer Engine|Apex).* not installed")
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        gather_from_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
        scatter_to_sequence_parallel_region,
        vocab_parallel_cross_entropy,
    )
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.moe import moe_layer  # noqa: F401  else imported, with Triton, by the first layer
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

_extensions.setLevel(_level)

__all__ = [
    "AttnMaskType",
    "ColumnParallelLinear",
    "MLP",
    "MLPSubmodules",
    "ModuleSpec",
    "RowParallelLinear",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "copy_to_tensor_model_parallel_region",
    "gather_from_sequence_parallel_region",
    "gather_from_tensor_model_parallel_region",
    "parallel_state",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "scatter_to_sequence_parallel_region",
    "vocab_parallel_cross_entropy",
]
