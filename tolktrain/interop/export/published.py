"""The file of the authors of SmolTolk: weights and switches as their code saves and loads them.

```
DIR/
  model_ckpt.pt   {"model": tensors under the published names, "model_args": switches, "iter_num": step}
  backbone/       config.json and tokenizer of the text half, from which sizes are read
```
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.files.writing import naming, sync_path
from tolktrain.interop.export.llama import llama_config
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.folder_settings import write_json
from tolktrain.interop.published import ENTROPY_WEIGHT, POOLING, published_name
from tolktrain.interop.tensor_writer import DTYPES, DType, new_folder, require_new
from tolktrain.interop.weights import OpenWeights
from tolktrain.model.architecture import Architecture
from tolktrain.vocabulary import SPECIAL_TEXT_IDS

FILE, BACKBONE_FOLDER = "model_ckpt.pt", "backbone"
_DEFAULT_LENGTH = 2048  # of the released code


def export_published(source: ExportSource, into: Path, dtype: DType, report: Callable[[str], None]) -> Path:
    """Write a model in this format into the new or empty folder `into`; returns the folder that it was read from.

    Memory: the whole model in `dtype`.

    Raises:
        UserError: as `export_weights`, or the model has more than one codebook, which the authors' code lacks.
    """
    require_new(into)
    with source.open(report) as weights, new_folder(into) as aside:
        architecture = weights.architecture
        if architecture.num_codebooks != 1:
            raise UserError(
                f"the model has {architecture.num_codebooks} codebooks, and the code of the SmolTolk authors has one;"
                " --format hf writes the whole model"
            )
        if architecture.special_tokens:
            raise UserError(
                f"the model has the special tokens {', '.join(architecture.special_tokens)}, for whose names the format"
                " of the SmolTolk authors has no place; --format hf writes the whole model"
            )
        folder = aside / BACKBONE_FOLDER
        folder.mkdir()
        length = weights.sequence_length or _DEFAULT_LENGTH
        eos = source.add_text_tokenizer(folder, weights)
        write_json(folder / "config.json", llama_config(architecture, dtype, length, eos))
        sync_path(folder)
        tensors = _tensors(weights, DTYPES[dtype])
        content = {
            "model": tensors,
            "model_args": _arguments(architecture, _backbone(source, into), length, DTYPES[dtype]),
            "iter_num": weights.state.get("step"),
        }
        with naming(aside / FILE):
            torch.save(content, aside / FILE)
        sync_path(aside / FILE)
        report(f"{FILE}: {len(tensors)} tensors")
    return weights.folder


def _backbone(source: ExportSource, into: Path) -> str:
    """The backbone that the run has begun from, or the folder written here."""
    named = None if source.config is None else source.config.model.backbone
    return named if isinstance(named, str) else str(into.resolve() / BACKBONE_FOLDER)


def _tensors(weights: OpenWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """By published name; the copies of tied tables share their memory, so the file holds them once."""
    tensors = {published_name(name): weights.read(name).to(dtype) for name in weights.shapes}
    if "layer_weights" in tensors:
        tensors["layer_weights"] = tensors["layer_weights"].view(-1, 1, 1, 1)
    tensors["audio_unembed.0.weight"] = tensors["audio_embed.0.weight"]
    head, table = tensors.get("txt_unembed.weight"), tensors["txt_embed.weight"]
    if head is not None:  # rows of special ids, which are never predicted
        tensors["txt_unembed.weight"] = torch.cat((head, torch.zeros(SPECIAL_TEXT_IDS, head.shape[1], dtype=dtype)))
    else:
        tensors["txt_unembed.weight"] = table
    return tensors


def _arguments(architecture: Architecture, backbone: str, length: int, dtype: torch.dtype) -> Mapping[str, Any]:
    """The fields of the released ModelArgs."""
    static, dynamic = next(key for key, pooling in POOLING.items() if pooling == architecture.layer_pooling)
    return {
        "audio_vocabsize": architecture.speech_vocab_size,
        "txt_vocabsize": architecture.text_table_size,
        "block_size": length,
        "audio_pad_token": architecture.speech_pad,
        "bop_token": architecture.prefix_begin,
        "eop_token": architecture.prefix_end,
        "swt_token": architecture.switch,
        "n_codebooks": 1,
        "tie_audio_embeddings": True,
        "backbone": backbone,
        "warm_init": True,
        "freeze_backbone": False,
        "freeze_txt_inout": False,
        "n_audio_in_layers": architecture.input_adapter_layers,
        "n_audio_out_layers": architecture.output_adapter_layers,
        "layer_wa_audio": static,
        "layer_selwa_audio": dynamic,
        "selwa_in_layer": None,
        "selwa_linear": True,
        "raw_speech_residual": architecture.residual,
        "entropy_reg": ENTROPY_WEIGHT,
        "torch_dtype": dtype,
        "attn_implementation": "sdpa",
    }
