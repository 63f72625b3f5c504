"""The report as one HTML page: pictures as inline SVG, audio as data addresses, nothing loaded from anywhere."""

import base64
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tolktrain.data.strategies import DISPLAY_ORDER
from tolktrain.errors import UserError
from tolktrain.files.names import inside
from tolktrain.files.printable import printable
from tolktrain.files.reading import read_bytes
from tolktrain.report import figures
from tolktrain.report.analysis import analysis_figures, parse_analysis
from tolktrain.report.results import result_sections
from tolktrain.report.rundata import Row, RunData
from tolktrain.runs.changes import shown_value
from tolktrain.runs.paths import RunPaths

_PARTS = (
    ("prompt", "Prompt, as recorded"),
    ("resynthesis", "Prompt, from its units"),
    ("continuation", "Continuation by the model"),
)
_ANSWER_PARTS = (("question", "Question"), ("answer", "Spoken answer"))
_MOST_AUDIO_BYTES = 1 << 28  # audio of a page


def environment() -> Environment:
    """Templates of this folder, which escape what they are given, and their filters."""
    made = Environment(
        loader=PackageLoader("tolktrain.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "nats": nats,
        "percent": percent,
        "count": count,
        "duration": duration,
        "shown": shown_value,
    }
    return made


def render(run: RunData) -> str:
    """The page of a run as HTML text."""
    return (
        environment()
        .get_template("template.html")
        .render(
            name=run.name,
            stats=_stats(run),
            stages=run.stages,
            targets=(run.evaluation or {}).get("targets", []),
            evaluation=run.evaluation,
            samples=_samples(run),
            sampling=run.samples,
            answers=_answers(run),
            figures=_figures(run),
            sections=result_sections(run),
            analysis=_analysis(run),
            losses=loss_table(run),
            changes=run.changes,
            run_dir=printable(run.directory),
            config=printable(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)),
        )
    )


def loss_table(run: RunData) -> list[Row]:
    """Held-out losses: a row per set, strategy and modality, with the value after each stage and in the evaluation."""
    rows: dict[tuple[str, str, str], Row] = {}

    def row(dataset: str, strategy: str, modality: str) -> Row:
        empty: Row = {
            "set": dataset,
            "strategy": strategy,
            "modality": modality,
            "stages": {},
            "final": None,
            "bigram": None,
        }
        return rows.setdefault((dataset, strategy, modality), empty)

    for validation in run.last_validations():
        for modality, value in (("text", validation.text_loss), ("speech", validation.speech_loss)):
            if value is not None:
                row(validation.dataset, validation.strategy, modality)["stages"][validation.stage] = value
    for figures_of in (run.evaluation or {}).get("losses", []):
        for modality in ("text", "speech"):
            if figures_of.get(modality):
                target = row(figures_of["set"], figures_of["strategy"], modality)
                target["final"] = figures_of[modality]["loss"]
                target["bigram"] = figures_of[modality].get("bigram_loss")
    order = {name: place for place, name in enumerate(DISPLAY_ORDER)}
    sets = list(dict.fromkeys(key[0] for key in rows))
    return sorted(
        rows.values(), key=lambda r: (sets.index(r["set"]), order.get(r["strategy"], 9), r["modality"] != "text")
    )


def nats(value: float | None) -> str:
    """A loss with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def count(value: float) -> str:
    """A large number in three digits with its unit: 3.21 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, minutes and seconds, or seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    larger, smaller = ("min", "s") if whole < 3600 else ("h", "min")
    first, rest = divmod(whole if whole < 3600 else whole // 60, 60)
    return f"{first} {larger} {rest} {smaller}" if rest else f"{first} {larger}"


def _stats(run: RunData) -> list[tuple[str, str, str]]:
    """Figures for the head of the page: value, name, remark."""
    last = run.steps[-1]
    stages = run.stages
    stats = []
    if parameters := (run.evaluation or {}).get("parameters"):
        parts = ", ".join(
            f"{count(parameters[group])} {group}" for group in ("backbone", "speech") if group in parameters
        )
        stats.append((count(parameters["total"]), "parameters", parts))
    stages_named = f"{len(stages)} stage{'s' if len(stages) > 1 else ''}, {int(last['step']):,} steps"
    stats.append((count(int(last.get("tokens", 0))), "tokens", stages_named))
    seconds = sum(stage.seconds for stage in stages)
    device = str((run.evaluation or {}).get("device", ""))
    stats.append((duration(seconds), "training", f"on {device}" if device else "validation apart"))
    if run.gpu_memory is not None:
        allocated, reserved = run.gpu_memory
        stats.append((f"{reserved:.1f} GiB", "GPU memory reserved", f"{allocated:.1f} GiB of it allocated"))
    for modality in ("speech", "text"):
        figure = run.evaluated(run.primary_set, modality, modality)
        if figure is not None:
            against = (
                f"bigram {nats(figure['bigram_loss'])}" if figure.get("bigram_loss") is not None else "nats per token"
            )
            stats.append((nats(figure["loss"]), f"held-out {modality} loss", against))
    return stats


def _figures(run: RunData) -> Row:
    evaluation = run.evaluation or {}
    rows = evaluation.get("choices", [])
    layers = evaluation.get("layers")
    sets = list(dict.fromkeys(row["set"] for row in rows))
    compared = figures.preferences(run)
    return {
        "losses": Markup(figures.loss_curves(run)),
        "rates": Markup(figures.learning_rates(run)),
        "preferences": Markup(compared) if compared else None,
        "throughput": Markup(figures.throughput(run)),
        "choices": {name: Markup(figures.choices(rows, name)) for name in sets},
        "layers": Markup(figures.layer_weights(layers)) if layers else None,
    }


def _analysis(run: RunData) -> Row | None:
    if run.analysis is None:
        return None
    content = parse_analysis(run.analysis, RunPaths(run.directory).analysis)
    pictures = analysis_figures(content)
    return {
        "step": content.step,
        "sample": content.sample,
        "start": content.start,
        "wide": [(picture.title, Markup(picture.svg)) for picture in pictures if picture.is_wide],
        "narrow": [(picture.title, Markup(picture.svg)) for picture in pictures if not picture.is_wide],
    }


def _samples(run: RunData) -> list[dict[str, Any]] | None:
    if run.samples is None:
        return None
    return _with_audio(run.samples["prompts"], _PARTS, RunPaths(run.directory).sample_index)


def _answers(run: RunData) -> list[dict[str, Any]]:
    if run.answers is None:
        return []
    return _with_audio(run.answers["samples"], _ANSWER_PARTS, RunPaths(run.directory).answers)


def _with_audio(entries: list[Row], parts: tuple[tuple[str, str], ...], index: Path) -> list[dict[str, Any]]:
    """The entries of a file, with the titles and the audio of their parts, which are in the folder of the file."""
    shown = []
    left = _MOST_AUDIO_BYTES
    for entry in entries:
        audio = []
        for part, title in parts:
            content = _audio(index, entry["files"][part], left) if part in entry["files"] else None
            if content is not None:
                left -= len(content)
                audio.append((title, "data:audio/wav;base64," + base64.b64encode(content).decode("ascii")))
        shown.append(entry | {"audio": audio})
    return shown


def _audio(index: Path, name: object, most: int) -> bytes | None:
    """A file in the folder of `index`, or None if it is missing. Raises `UserError` if it is another's, or larger than
    `most`."""
    path = inside(index.parent, name, index)
    if not path.exists():
        return None
    try:
        return read_bytes(path, most)
    except OSError as error:
        raise UserError(
            f"{path} cannot be put into the page ({error.strerror}); it has room for {_MOST_AUDIO_BYTES >> 20} MiB of"
            " audio in all: make the samples again"
        ) from None
