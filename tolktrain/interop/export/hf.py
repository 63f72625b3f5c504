"""Hugging Face format: weights under canonical names, and a modeling file that needs torch and transformers only.

```
DIR/
  config.json, generation_config.json, modeling_smoltolk.py   for AutoModelForCausalLM with trust_remote_code
  model-*.safetensors, model.safetensors.index.json
  architecture.json                                           for tolktrain (`interop.weights`)
  tokenizer.json, tokenizer_config.json                       of text, if the run names a tokenizer
  speech_tokenizer/                                           its description and centroids, likewise
  README.md                                                   model card
```
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tolktrain.config import Config
from tolktrain.data.text_tokenizer import TOKENIZER_FILE, load_text_tokenizer, tokenizer_folder
from tolktrain.errors import UserError
from tolktrain.files.writing import naming, sync_path, write_synced
from tolktrain.interop.export.card import model_card
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.tensor_writer import DType
from tolktrain.interop.weights import export_weights
from tolktrain.model.architecture import Architecture
from tolktrain.units.load import kind_of

MODELING_FILE = "modeling_smoltolk.py"
SPEECH_FOLDER = "speech_tokenizer"
_TORCH_NAMES: Mapping[DType, str] = {"fp32": "float32", "bf16": "bfloat16"}


def export_hf(source: ExportSource, into: Path, dtype: DType, report: Callable[[str], None]) -> Path:
    """Write a checkpoint in this format into the new or empty folder `into`; returns the checkpoint.

    Raises UserError as `export_weights`, if a tokenizer that the run names is missing or another one, or if the input
    adapter attends as in the reference implementation, which the modeling file does not compute.
    """
    eos: list[int] = []

    def add(folder: Path, state: Mapping[str, Any]) -> None:
        architecture = Architecture.from_dict(state["architecture"])
        if architecture.adapter_attention != "runs":
            raise UserError(
                "the input adapter of this model attends as the reference implementation does, which the modeling file"
                " for transformers does not compute; --format llama writes its text half"
            )
        if source.config is not None:
            eos.extend(_add_tokenizers(folder, source.config, state.get("tokenizers", {}), architecture))
        write_json(folder / "config.json", model_config(architecture, dtype, eos[0] if eos else None))
        write_json(folder / "generation_config.json", _generation(source.config, eos[0] if eos else None))
        modeling = (Path(__file__).parent / MODELING_FILE).read_bytes()
        write_synced(folder / MODELING_FILE, modeling)
        write_synced(folder / "README.md", model_card(source, architecture, state, dtype).encode())

    return export_weights(source.folder, into, source.step, dtype, report, add=add)


def model_config(architecture: Architecture, dtype: DType, text_eos: int | None) -> dict[str, Any]:
    """config.json for the modeling file."""
    scaling = architecture.to_dict()["rope_scaling"]
    entries = {"AutoConfig": "SmolTolkConfig", "AutoModelForCausalLM": "SmolTolkForCausalLM"}
    return {
        "architectures": ["SmolTolkForCausalLM"],
        "auto_map": {name: f"{MODELING_FILE.removesuffix('.py')}.{entry}" for name, entry in entries.items()},
        "model_type": "smoltolk",
        "torch_dtype": _TORCH_NAMES[dtype],
        "eos_token_id": text_eos,
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "head_dim": architecture.head_dim,
        "intermediate_size": architecture.ffn_hidden_size,
        "vocab_size": architecture.text_vocab_size,
        "rotary_base": architecture.rope_theta,
        "rotary_scaling": scaling,
        "rms_norm_eps": architecture.rms_norm_eps,
        "tie_text_embeddings": architecture.tie_text_embeddings,
        "initializer_range": architecture.initializer_range,
        "num_units": architecture.num_units,
        "num_codebooks": architecture.num_codebooks,
        "input_adapter_layers": architecture.input_adapter_layers,
        "output_adapter_layers": architecture.output_adapter_layers,
        "layer_pooling": architecture.layer_pooling,
        "residual": architecture.residual,
    }


def write_json(path: Path, content: Any) -> None:
    """Write a small new file. Raises OSError with its name."""
    write_synced(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def add_text_tokenizer(
    folder: Path, config: Config, digests: Mapping[str, str | None], architecture: Architecture
) -> int | None:
    """Add the run's text tokenizer to a folder; returns its EOS, None if the run names no tokenizer."""
    name = config.data.text_tokenizer
    if name is None:
        return None
    tokenizer = load_text_tokenizer(name)
    _check(digests.get("text"), tokenizer.info.sha256, "text", name)
    if tokenizer.info.vocab_size > architecture.text_vocab_size:
        raise UserError(
            f"data.text_tokenizer ({name}) has {tokenizer.info.vocab_size} ids, more than the model's"
            f" {architecture.text_vocab_size}; name the tokenizer that the data sets were made with"
        )
    _copy(tokenizer_folder(name) / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    eos = tokenizer.tokenizer.id_to_token(tokenizer.info.eos_id)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings)
    return tokenizer.info.eos_id


def _add_tokenizers(
    folder: Path, config: Config, digests: Mapping[str, str | None], architecture: Architecture
) -> list[int]:
    eos = add_text_tokenizer(folder, config, digests, architecture)
    name = config.data.speech_tokenizer
    if name is not None:
        kind = kind_of(name)
        description = json.loads((Path(name) / "speech_tokenizer.json").read_text(encoding="utf-8"))
        _check(digests.get("speech"), str(description.get("sha256")), f"speech ({kind.name})", name)
        (folder / SPEECH_FOLDER).mkdir()
        # A pretrained model in a folder of its own is named by the description, and not copied.
        for file in sorted(Path(name).iterdir()):
            if file.is_file() and file.suffix in (".json", ".safetensors"):
                _copy(file, folder / SPEECH_FOLDER / file.name)
        sync_path(folder / SPEECH_FOLDER)
    return [] if eos is None else [eos]


def _check(trained_with: str | None, digest: str, kind: str, name: str) -> None:
    if trained_with is not None and trained_with != digest:
        raise UserError(
            f"the {kind} tokenizer {name} has sha256 {digest[:12]}, the model was trained with {trained_with[:12]};"
            " name that tokenizer's folder in config.yaml of the run"
        )


def _copy(source: Path, target: Path) -> None:
    with naming(target):
        shutil.copyfile(source, target)
    sync_path(target)


def _generation(config: Config | None, text_eos: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {} if text_eos is None else {"eos_token_id": text_eos}
    if config is not None:
        evaluation = config.evaluation
        settings |= {"do_sample": True, "temperature": evaluation.temperature, "top_k": evaluation.top_k}
    return settings
