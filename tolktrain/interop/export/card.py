"""The model card (README.md) of an exported model."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tolktrain import __version__
from tolktrain.config import Config
from tolktrain.files.reading import read_json
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.tensor_writer import DType
from tolktrain.model.architecture import Architecture
from tolktrain.model.counts import count_by_group
from tolktrain.runs.paths import RunPaths

_LIBRARIES = ("torch", "deepspeed", "megatron-core", "mosaicml-streaming")

_USAGE = """\
## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
text = AutoTokenizer.from_pretrained(FOLDER)
ids = text("Once upon a time", return_tensors="pt").input_ids
print(text.decode(model.generate(ids)))                              # text after text
units = model.generate(ids, to="speech", do_sample=True)             # units [n, K] after text
print(text.decode(model.generate(units=units, to="text")))           # text after speech
more = model.generate(units=units)                                   # speech after speech
```

Units are those of the speech tokenizer in `speech_tokenizer/`, with repeated frames collapsed. `log_likelihood` gives
the log-probability of sequences of both modalities.
"""


def model_card(source: ExportSource, architecture: Architecture, state: Mapping[str, Any], dtype: DType) -> str:
    """Markdown with a header for the hub: recipe, data, losses, versions, use."""
    counts = count_by_group(architecture)
    lines = [
        "---",
        "library_name: transformers",
        "license: other  # before publishing, name the licence of the weights; it depends on data and backbone",
        "tags: [smoltolk, text-speech, speech-language-model]",
        "---",
        "",
        "# SmolTolk",
        "",
        "A text-speech language model ([arXiv 2503.06211](https://arxiv.org/abs/2503.06211)), trained with tolktrain"
        f" {__version__}.",
        "",
        f"- parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())}),"
        f" {dtype}",
        f"- step {state.get('step')}, stage {state.get('stage_name', state.get('stage'))}",
        f"- {architecture.num_units} units, {architecture.num_codebooks} codebook(s), pooling"
        f" {architecture.layer_pooling}, {architecture.input_adapter_layers} layers before and"
        f" {architecture.output_adapter_layers} after the backbone",
        f"- trained with Python libraries {', '.join(_versions())}",
        "",
    ]
    if source.config is not None:
        lines += _recipe(source.config)
    lines += _measured(source, state)
    return "\n".join(lines) + "\n" + _USAGE


def _recipe(config: Config) -> list[str]:
    lines = ["## Recipe and data", ""]
    lines.append(f"Backbone: {config.model.backbone if isinstance(config.model.backbone, str) else 'random weights'}.")
    lines += ["", "| stage | tokens | strategies | data sets |", "|---|---:|---|---|"]
    for stage in config.train.stages:
        sets = sorted({name for entry in stage.mixture.values() for name in entry.sets})
        lines.append(f"| {stage.name} | {stage.tokens or 0:,} | {', '.join(stage.mixture)} | {', '.join(sets)} |")
    return [*lines, "", "Licences of the data sets: *to be filled in*.", ""]


def _measured(source: ExportSource, state: Mapping[str, Any]) -> list[str]:
    """Losses of the checkpoint, and the result of `tolktrain evaluate` if it is of this step."""
    lines: list[str] = []
    metrics = state.get("metrics")
    if isinstance(metrics, Mapping):
        lines += [f"- {name}: {value:.4f}" for name, value in metrics.items() if isinstance(value, float)]
    if source.run_dir is not None and RunPaths(source.run_dir).evaluation.is_file():
        try:
            found = read_json(RunPaths(source.run_dir).evaluation)
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict) and found.get("step") == state.get("step"):
            lines += [f"- {name}: {value}" for name, value in _numbers(found)]
    return ["## Measured", "", *lines, ""] if lines else []


def _numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and key != "settings":
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", json.dumps(round(value, 4))


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
