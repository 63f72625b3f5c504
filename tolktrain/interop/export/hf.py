"""Hugging Face format: weights under canonical names, and program files that need torch and transformers only.

```
DIR/
  config.json, generation_config.json, modeling_smoltolk.py   for AutoModelForCausalLM with trust_remote_code
  model-*.safetensors, model.safetensors.index.json
  architecture.json                                           for tolktrain (`interop.weights`)
  tokenizer.json, tokenizer_config.json                       of text, if a tokenizer is known
  speech_tokenizer/                                           its description and centroids, likewise; a vocoder
  processor_config.json, processing_smoltolk.py               for AutoProcessor, with a text tokenizer
  README.md                                                   model card
```
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.writing import write_synced
from tolktrain.interop.export.card import model_card
from tolktrain.interop.export.model_config import MODELING_FILE, PROCESSING_FILE, model_config
from tolktrain.interop.export.source import ExportSource, digests
from tolktrain.interop.folder_settings import (
    GENERATION_FILE,
    PROCESSOR_FILE,
    read_settings,
    voice_in,
    write_json,
)
from tolktrain.interop.tensor_writer import DType, require_new
from tolktrain.interop.tokenizer_files import check_vocoder
from tolktrain.interop.weights import OpenWeights, write_weights
from tolktrain.units.vocoders.kind import FIRST_VOICE, Voice


def export_hf(source: ExportSource, into: Path, dtype: DType, report: Callable[[str], None]) -> Path:
    """Write a model in this format into the new or empty folder `into`; returns the folder that it was read from.

    Raises UserError as `export_weights`, if a tokenizer that the run names is missing or another one, or if the input
    adapter attends as in the reference implementation, which the modeling file does not compute.
    """
    require_new(into)

    def prepare(folder: Path, weights: OpenWeights) -> OpenWeights:
        eos, has_speech, weights = source.add_tokenizers(folder, weights)
        voice = _voice(source)
        vocoder = check_vocoder(folder, voice) if has_speech else None
        if eos is not None:
            _add_program(folder, PROCESSING_FILE)
            write_json(folder / PROCESSOR_FILE, _processor(has_speech, vocoder is not None, voice))
        config = model_config(weights.architecture, dtype, eos, digests(weights), weights.sequence_length)
        if eos is None:
            del config["auto_map"]["AutoProcessor"]
        write_json(folder / "config.json", config)
        write_json(folder / GENERATION_FILE, _generation(source, eos))
        _add_program(folder, MODELING_FILE)
        write_synced(folder / "README.md", model_card(source, weights, dtype, vocoder).encode())
        return weights

    with source.open(report) as weights:
        if weights.architecture.adapter_attention != "runs":
            raise UserError(
                "the input adapter of this model attends as the reference implementation does, which the modeling file"
                " for transformers does not compute; --format llama writes its text half"
            )
        write_weights(weights, into, dtype, report, prepare=prepare)
    return weights.folder


def _add_program(folder: Path, name: str) -> None:
    write_synced(folder / name, (Path(__file__).parent / name).read_bytes())


def _voice(source: ExportSource) -> Voice:
    """The speaker and style of the run, or of the folder of weights."""
    if source.config is not None:
        return Voice(source.config.data.vocoder.speaker, source.config.data.vocoder.style)
    return voice_in(source.folder)


def _processor(has_speech: bool, has_vocoder: bool, voice: Voice) -> dict[str, Any]:
    entry = f"{PROCESSING_FILE.removesuffix('.py')}.SmolTolkProcessor"
    chosen = {} if voice == FIRST_VOICE else {"voice": asdict(voice)}
    return {
        "processor_class": "SmolTolkProcessor",
        "auto_map": {"AutoProcessor": entry},
        "has_speech": has_speech,
        "has_vocoder": has_vocoder,
        **chosen,
    }


def _generation(source: ExportSource, text_eos: int | None) -> Mapping[str, Any]:
    """Settings of sampling: those of the run, or of the folder of weights."""
    settings: dict[str, Any] = {} if text_eos is None else {"eos_token_id": text_eos}
    if source.config is None:
        return {**read_settings(source.folder / GENERATION_FILE), **settings}
    evaluation = source.config.evaluation
    return settings | {"do_sample": True, "temperature": evaluation.temperature, "top_k": evaluation.top_k}
