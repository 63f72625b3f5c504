"""What we use of megatron-core beyond its documented layers: names, parameters and attributes that a release may
change. `parallel.megatron` is the way in; this is what a test compares with the installed version."""

from typing import TYPE_CHECKING

from tolktrain.libraries.pinned import Pinned

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_STATE = "megatron.core.parallel_state"
_REGIONS = "megatron.core.tensor_parallel"
_LINEAR = "megatron.core.tensor_parallel.layers"
_LAYERS = "megatron.core.transformer"

MEGATRON = (
    # Groups. DeepSpeed's topology must put the same ranks into them (`check_same_groups`).
    *(
        Pinned(_STATE, name, ("check_initialized",))
        for name in ("get_embedding_group", "get_model_parallel_group", "get_tensor_model_parallel_group")
    ),
    Pinned(_STATE, "get_pipeline_model_parallel_group", ("check_initialized",)),
    Pinned(
        _STATE, "get_data_parallel_group", ("with_context_parallel", "partial_data_parallel", "independent_all_gather")
    ),
    *(
        Pinned(_STATE, f"get_{kind}_{what}")
        for kind in ("tensor_model_parallel", "pipeline_model_parallel", "data_parallel")
        for what in ("rank", "world_size")
    ),
    Pinned(_STATE, "model_parallel_is_initialized", ()),
    Pinned(_STATE, "destroy_model_parallel", ()),
    Pinned(_STATE, "_global_process_group_list"),  # what `created_groups` reads
    # Exchanges between tensor ranks.
    Pinned(_REGIONS, "copy_to_tensor_model_parallel_region", ("input_", "group")),
    Pinned(_REGIONS, "reduce_from_tensor_model_parallel_region", ("input_", "group")),
    Pinned(_REGIONS, "scatter_to_sequence_parallel_region", ("input_", "group")),
    Pinned(
        _REGIONS,
        "gather_from_sequence_parallel_region",
        ("input_", "tensor_parallel_output_grad", "group", "output_split_sizes", "use_global_buffer"),
    ),
    Pinned(_REGIONS, "vocab_parallel_cross_entropy", ("vocab_parallel_logits", "target", "label_smoothing")),
    # What linear layers note on their weights: checkpoints compare it with the canonical views, and DeepSpeed's
    # gradient norm counts by it.
    Pinned(_LINEAR, "set_tensor_model_parallel_attributes", ("tensor", "is_parallel", "dim", "stride")),
    Pinned(_LINEAR, "_MODEL_PARALLEL_ATTRIBUTE_DEFAULTS"),
    # Layers that ours derive from, and what these call and replace.
    Pinned(f"{_LINEAR}:ColumnParallelLinear", "forward", ("self", "input_", "weight", "runtime_gather_output")),
    Pinned(f"{_LINEAR}:RowParallelLinear", "forward", ("self", "input_")),
    *(
        Pinned(f"{_LINEAR}:{kind}ParallelLinear", name, parameters)
        for kind in ("Column", "Row")
        for name, parameters in (("get_extra_state", ("self",)), ("set_extra_state", ("self", "state")))
    ),
    Pinned(
        f"{_LAYERS}.attention:SelfAttention",
        "get_query_key_value_tensors",
        ("self", "hidden_states", "key_value_states", "output_gate", "split_qkv"),
    ),
    *(Pinned(f"{_LAYERS}.attention:Attention", name, "assigned") for name in ("core_attention", "linear_proj")),
    *(
        Pinned(f"{_LAYERS}.transformer_layer:TransformerLayer", name, "assigned")
        for name in ("input_layernorm", "self_attention", "pre_mlp_layernorm", "mlp")
    ),
    *(Pinned(f"{_LAYERS}.mlp:MLP", name, "assigned") for name in ("linear_fc1", "linear_fc2", "activation_func")),
    *(
        Pinned(f"{_LAYERS}.transformer_config:TransformerConfig", name, "assigned")
        for name in ("use_te_activation_func", "bias_activation_fusion", "cuda_graph_scope")
    ),
    *(
        Pinned("megatron.core.model_parallel_config:ModelParallelConfig", name, "assigned")
        for name in ("gradient_accumulation_fusion", "use_cpu_initialization", "perform_initialization")
    ),
)


def created_groups() -> "list[ProcessGroup]":
    """This rank's groups that megatron-core has created and not forgotten. The default group is not one of them."""
    from tolktrain.parallel.megatron import parallel_state

    return [group for group in parallel_state._global_process_group_list or [] if group is not None]
