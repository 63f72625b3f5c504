"""The text half of a model as a plain LlamaForCausalLM, for other programs and as `model.backbone` of a new run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tolktrain.interop.export.model_config import TORCH_NAMES
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.folder_settings import write_json
from tolktrain.interop.huggingface import TEXT_TABLE, checkpoint_name, is_backbone
from tolktrain.interop.tensor_writer import DType, new_folder, require_new, write_tensors
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import Shape

_LONGEST_CONTEXT = 2048  # written if the length of training sequences is not known


def export_llama(source: ExportSource, into: Path, dtype: DType, report: Callable[[str], None]) -> Path:
    """Write the backbone of a model with text table and text head, without the rows of special ids, into the new or
    empty folder `into`; returns the folder that it was read from.

    Raises UserError as `export_hf`.
    """
    require_new(into)
    with source.open(report) as weights, new_folder(into) as aside:
        architecture = weights.architecture
        if architecture.special_tokens:
            report(
                f"the special tokens {', '.join(architecture.special_tokens)} are not written: the format has no speech"
                " and no special ids; --format hf writes them"
            )
        shapes: dict[str, Shape] = {}
        canonical: dict[str, str] = {}
        for name, shape in weights.shapes.items():
            if is_backbone(name):
                canonical[checkpoint_name(name)] = name
                rows = architecture.text_vocab_size if name == TEXT_TABLE else shape[0]
                shapes[checkpoint_name(name)] = (rows, *shape[1:])

        def read(name: str) -> Tensor:
            return weights.read(canonical[name])[: shapes[name][0]].clone()

        write_tensors(aside, shapes, read, dtype, report)
        eos = source.add_text_tokenizer(aside, weights)
        length = weights.sequence_length or _LONGEST_CONTEXT
        write_json(aside / "config.json", llama_config(architecture, dtype, length, eos))
    return weights.folder


def llama_config(architecture: Architecture, dtype: DType, length: int, text_eos: int | None) -> dict[str, Any]:
    """config.json of the text half, for transformers 4 and 5, each of which reads its own entries of the angles."""
    scaling = architecture.rope_scaling
    angles: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        angles = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": TORCH_NAMES[dtype],
        "eos_token_id": text_eos,
        "bos_token_id": None,
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "head_dim": architecture.head_dim,
        "intermediate_size": architecture.ffn_hidden_size,
        "vocab_size": architecture.text_vocab_size,
        "max_position_embeddings": length,
        "rope_theta": architecture.rope_theta,
        "rope_scaling": None if scaling is None else angles,
        "rope_parameters": {"rope_theta": architecture.rope_theta, **angles},
        "rms_norm_eps": architecture.rms_norm_eps,
        "tie_word_embeddings": architecture.tie_text_embeddings,
        "initializer_range": architecture.initializer_range,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
