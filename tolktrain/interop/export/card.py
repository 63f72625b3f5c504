"""The model card (README.md) of an exported model."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tolktrain import __version__
from tolktrain.config import Config
from tolktrain.data.records import DatasetInfo
from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.tensor_writer import DType
from tolktrain.interop.tokenizer_files import speech_model_of
from tolktrain.interop.weights import OpenWeights
from tolktrain.model.counts import count_by_group
from tolktrain.runs.paths import RunPaths
from tolktrain.units.load import kind_of

_LIBRARIES = ("torch", "deepspeed", "megatron-core", "mosaicml-streaming", "transformers", "tokenizers")

_HEADER = """\
---
library_name: transformers
license: other  # before publishing, name the licence of the weights; it depends on data and backbone
license_name: unspecified
tags: [smoltolk, text-speech, speech-language-model]
---

# SmolTolk
"""

_SPEECH = """
The vocoder in `speech_tokenizer/` turns units into audio, by the processor alone:

```python
waveform = processor.speak(units)  # float32 [samples], processor.spoken_rate samples per second
waveform = processor.speak(units, run_lengths, speaker="NAME or number", style="NAME or number")
```
"""


def model_card(
    source: ExportSource, weights: OpenWeights, dtype: DType, vocoder: Mapping[str, Any] | None = None
) -> str:
    """Markdown with a header for the hub: data, recipe, losses, benchmarks, versions, licence fields, use.

    `vocoder` is the content of vocoder.json in the export.
    """
    architecture, state = weights.architecture, weights.state
    counts = count_by_group(architecture)
    lines = [
        _HEADER,
        "A text-speech language model ([arXiv 2503.06211](https://arxiv.org/abs/2503.06211)), trained with tolktrain"
        f" {__version__}.",
        "",
        f"- parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())}),"
        f" {dtype}",
        *_trained(state),
        f"- {architecture.num_units} units, {architecture.num_codebooks} codebook(s), pooling"
        f" {architecture.layer_pooling}, {architecture.input_adapter_layers} layers before and"
        f" {architecture.output_adapter_layers} after the backbone, rotary base {architecture.rope_theta:g}",
        f"- exported with Python libraries {', '.join(_versions())}",
        *_tokenizers(source),
        *_vocoder(source, vocoder),
        *([f"- imported from {_origin(weights.origin)}"] if weights.origin else []),
        "",
    ]
    if source.config is not None:
        lines += [*_recipe(source.config), *_data(source.config)]
    lines += [*_measured(source, state), *_benchmarks(source, state)]
    text, speech = source.tokenizers
    lines += _usage(text is not None, text is not None and speech is not None)
    return "\n".join(lines) + "\n" + (_SPEECH if vocoder is not None else "")


def _usage(has_processor: bool, hears: bool) -> list[str]:
    """How to use the folder, with the parts that it has."""
    load, given, shown = "from_pretrained(FOLDER, trust_remote_code=True)", "...  # {}; no tokenizer was exported", "{}"
    if has_processor:
        shown = "print(processor.decode({}))"
    heard = "processor(audio=waveform, sampling_rate=processor.sampling_rate).units  # units [n, K] of mono audio"
    return [
        "## Use",
        "",
        "Needs torch and transformers (4.57 or 5) only.",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModelForCausalLM" + (", AutoProcessor" if has_processor else ""),
        "",
        f"model = AutoModelForCausalLM.{load}",
        *([f"processor = AutoProcessor.{load}"] if has_processor else []),
        "ids = "
        + ('processor(text="Once upon a time").input_ids  # int64 [1, n]' if has_processor else given.format("[1, n]")),
        shown.format("model.generate(ids)") + "  # text after text",
        'units = model.generate(ids, to="speech", do_sample=True)  # units [n, K] after text',
        "heard = " + (heard if hears else given.format("units [n, K], repeated frames collapsed")),
        shown.format('model.generate(units=heard, to="text")') + "  # text after speech",
        "more = model.generate(units=heard)  # speech after speech",
        "```",
        "",
        *(["Units are those of the speech tokenizer in `speech_tokenizer/`, with repeated frames collapsed."] * hears),
        "`log_likelihood` gives the log-probability of sequences of both modalities.",
    ]


def _trained(state: Mapping[str, Any]) -> Iterator[str]:
    """How far the model was trained, as far as it is known."""
    known = {"step": state.get("step"), "stage": state.get("stage_name", state.get("stage"))}
    parts = [f"{name} {value}" for name, value in known.items() if value is not None]
    if parts:
        yield f"- {', '.join(parts)}"


def _origin(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in origin.items())


def _tokenizers(source: ExportSource) -> Iterator[str]:
    _, speech = source.tokenizers
    if speech is None:
        return
    model = speech_model_of(Path(speech))
    if model is not None and model.startswith(("/", "~", "..")):
        yield (
            f"- the speech tokenizer computes with the model in the local folder {model}: before publishing, name its"
            " hub id in `speech_tokenizer/speech_tokenizer.json`"
        )
    elif model is not None:
        yield f"- the speech tokenizer computes with the model {model}"


def _vocoder(source: ExportSource, vocoder: Mapping[str, Any] | None) -> Iterator[str]:
    if vocoder is not None:
        sizes = vocoder["sizes"]
        choices = "".join(
            f", {sizes[f'num_{name}']} {name}" for name in ("speakers", "styles") if sizes[f"num_{name}"] is not None
        )
        durations = "with" if sizes["duration_channels"] is not None else "without"
        yield f"- vocoder {vocoder['name']}, {sizes['sample_rate']} samples per second{choices}, {durations} durations"
    elif source.tokenizers[1] is not None:
        kind = kind_of(source.tokenizers[1]).name
        how = "`processor.speak(units, run_lengths)`" if kind == "mimi" else "`tolktrain generate FOLDER`"
        yield f"- there is no vocoder file in this folder; {how} turns units of {kind} into audio" + (
            " if a vocoder is given (`--vocoder`)" if kind_of(source.tokenizers[1]).vocoder is None else ""
        )


def _recipe(config: Config) -> list[str]:
    train = config.train
    lines = ["## Recipe", ""]
    lines.append(f"Backbone: {config.model.backbone if isinstance(config.model.backbone, str) else 'random weights'}.")
    lines.append(
        f"AdamW {train.optimizer.betas[0]:g} / {train.optimizer.betas[1]:g}, weight decay"
        f" {train.optimizer.weight_decay:g}, clipping at {train.optimizer.clip_grad_norm:g}; {train.global_batch_size}"
        f" sequences of {train.sequence_length} positions per step; precision {train.precision}; seed"
        f" {config.run.seed}."
    )
    lines += [
        "",
        "| stage | tokens | trained | strategies | learning rates | data sets |",
        "|---|---:|---|---|---|---|",
    ]
    for stage in train.stages:
        sets = sorted({name for entry in stage.mixture.values() for name in entry.sets})
        rates = f"{stage.learning_rate:g}"
        rates += "" if stage.speech_learning_rate is None else f", speech {stage.speech_learning_rate:g}"
        rates += "" if stage.lora_learning_rate is None else f", low-rank updates {stage.lora_learning_rate:g}"
        cells = (stage.name, f"{stage.tokens:,}", ", ".join(stage.trainable), ", ".join(stage.mixture), rates)
        lines.append(f"| {' | '.join(cells)} | {', '.join(sets)} |")
    return [*lines, ""]


def _data(config: Config) -> list[str]:
    """The training sets, with the licences that their descriptions state."""
    lines = ["## Data", "", "| data set | records | hours | text ids | licence |", "|---|---:|---:|---:|---|"]
    names = {name for stage in config.train.stages for entry in stage.mixture.values() for name in entry.sets}
    for name in sorted(names):
        try:
            info = DatasetInfo.read(config.data.sets[name].path)
        except UserError:  # the data need not exist any more
            lines.append(f"| {name} | | | | *to be filled in* |")
            continue
        cells = (f"{info.num_records:,}", f"{info.hours:,.1f}", f"{info.num_text_tokens:,}", info.license)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _measured(source: ExportSource, state: Mapping[str, Any]) -> list[str]:
    """Losses of the checkpoint, and the result of `tolktrain evaluate` if it is of this step."""
    lines: list[str] = []
    metrics = state.get("metrics")
    if isinstance(metrics, Mapping):
        lines += [f"- {name}: {value:.4f}" for name, value in metrics.items() if isinstance(value, float)]
    found = _result(RunPaths(source.run_dir or source.folder).evaluation, state)
    rows = found.get("losses") if found is not None else None
    if isinstance(rows, list) and rows:
        lines += ["", "| held-out set | strategy | loss | text | speech |", "|---|---|---:|---:|---:|"]
        for row in rows:
            cells = [_loss(row), _loss(row.get("text")), _loss(row.get("speech"))]
            lines.append(f"| {row.get('set')} | {row.get('strategy')} | {' | '.join(cells)} |")
    choices = found.get("choices") if found is not None else None
    if isinstance(choices, list) and choices:
        lines += ["", *(f"- {name}: {value}" for name, value in _numbers({"choices": choices}))]
    return ["## Measured", "", "Losses in nats per scored token.", "", *lines, ""] if lines else []


def _loss(row: Any) -> str:
    value = row.get("loss") if isinstance(row, Mapping) else None
    return f"{value:.4f}" if isinstance(value, float) else ""


def _benchmarks(source: ExportSource, state: Mapping[str, Any]) -> list[str]:
    """The result of `tolktrain evaluate --benchmarks`, if it is of this step."""
    found = _result(RunPaths(source.run_dir or source.folder).benchmarks, state)
    rows = found.get("rows") if found is not None else None
    if not isinstance(rows, list) or not rows:
        return []
    lines = ["| benchmark | set | measure | rule | accuracy | 95 % interval |", "|---|---|---|---|---:|---:|"]
    for row in rows:
        names = " | ".join(str(row.get(key)) for key in ("benchmark", "set", "measure", "rule"))
        accuracy, low, high = (100 * float(row.get(key) or 0.0) for key in ("accuracy", "low", "high"))
        lines.append(f"| {names} | {accuracy:.1f} | {low:.1f} – {high:.1f} |")
    meaning = "Percent of pairs whose correct item has the higher score, or of questions that are answered correctly."
    return ["## Benchmarks", "", meaning, "", *lines, ""]


def _result(path: Path, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A file of results, if it is readable and of the same step."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("step") == (state.get("step") or 0) else None


def _numbers(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _numbers(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list):
        for row in content:
            name = f"{prefix}.{row.get('set')}.{row.get('direction')}" if isinstance(row, Mapping) else prefix
            yield from _numbers(row, name)
    elif isinstance(content, float):
        yield prefix, json.dumps(round(content, 4))


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
