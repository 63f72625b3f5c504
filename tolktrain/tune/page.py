"""`report.html` of a search, in the style of a run's report."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from tolktrain.config import Config
from tolktrain.files.printable import printable
from tolktrain.files.writing import replace_file
from tolktrain.report.drawing import INK, MUTED, SPEECH, STYLE, TEXT, THIRD, svg_of
from tolktrain.report.page import environment
from tolktrain.tune.answer import StageResult
from tolktrain.tune.predict import Device
from tolktrain.tune.setting import Setting
from tolktrain.tune.terminal import remarks, row_of

_COLOURS = (TEXT, SPEECH, THIRD, MUTED)  # by ZeRO stage 1, 2, 3, 0


def write_page(
    path: Path,
    config: Config,
    device: Device,
    versions: Mapping[str, str],
    results: Sequence[StageResult],
    together: Setting,
    calibration: Mapping[str, Any],
    command: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: of the page.
        config: that was tuned.
        device: trials ran on.
        versions: of what computed.
        results: of each stage of the recipe.
        together: the answer for all of them.
        calibration: as written for `plan`.
        command: of the search.
    """
    train = config.train
    page = (
        environment()
        .get_template("tune.html")
        .render(
            name=config.run.name,
            recipe=f"{train.global_batch_size} x {train.sequence_length} positions a step, {train.precision}",
            together=together.name,
            facts={
                "device": device.name,
                "processes": str(calibration["world_size"]),
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
                "command": printable(shlex.join(command)),
            },
            stats=[_stat(result, together) for result in results],
            stages=[_stage(result) for result in results],
            factor=calibration["time_factor"],
            entries=printable(together.document),
        )
    )
    replace_file(path, page)


def _stat(result: StageResult, together: Setting) -> tuple[str, str, str]:
    """Value, name and remark for the head of the page."""
    rate, first = result.found.rate(together), result.found.trials[0].setting
    own = result.found.rate(first)
    gain = f"{rate / own:.2f}x {first.label}" if rate and own and first.label else ""
    return f"{rate or 0:,.0f}", f"tokens/s in stage {result.name}", gain


def _stage(result: StageResult) -> dict[str, Any]:
    found = result.found
    failed = [trial for trial in found.trials if not trial.outcome.is_ok]
    best = found.best
    assert best is not None
    return {
        "name": result.name,
        "remarks": remarks(found),
        "rows": [row_of(result, setting) for setting in found.ranked()],
        "short": [
            row_of(result, setting) for setting in found.ranked(full_only=False) if not found.of(setting, found.full)
        ],
        "failed": [(t.setting.name, t.setting.label, t.outcome.status, printable(t.outcome.message)) for t in failed],
        "pruned": [(item.setting.name, item.reason) for item in found.pruned],
        "brought": [
            (knob, _shown(theirs), _shown(mine), f"{100 * (factor - 1):+.1f} %")
            for knob, theirs, mine, factor in found.brought(best)
        ],
        "values": [
            (knob, _shown(value), setting.name, f"{rate:,.0f}") for knob, value, setting, rate in found.best_of_values()
        ],
        "measured": Markup(_rates(result)),
        "predicted": Markup(_predictions(result)),
    }


def _shown(value: object) -> str:
    return "default" if value is None else str(value)


def _rates(result: StageResult) -> str:
    """Tokens per second against memory, a point for each setting."""
    found = result.found
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 3.2), layout="constrained")
        axis = figure.subplots()
        shown = found.ranked(full_only=False)
        for setting in shown:
            peaks = [trial.outcome.peak_memory_gib for trial in found.of(setting)]
            memory, rate = max((peak or 0.0 for peak in peaks), default=0.0), found.rate(setting)
            is_full = bool(found.of(setting, found.full))
            colour = _COLOURS[setting.zero_stage - 1]
            axis.plot([memory], [rate], "o", color=colour, fillstyle="full" if is_full else "none", label=None)
        for stage in sorted({setting.zero_stage for setting in shown}):
            axis.plot([], [], "o", color=_COLOURS[stage - 1], label=f"ZeRO {stage}")
        top = 1.1 * max((found.rate(setting) or 0.0 for setting in shown), default=1.0)
        axis.set(title="tokens per second", xlabel="peak memory of a rank, GiB", ylim=(0, top))
        axis.legend(loc="lower right")
        return svg_of(figure, "Tokens per second against memory", f"rates-{result.name}")


def _predictions(result: StageResult) -> str:
    """Predicted against measured step times and memory; the line is equality."""
    found, predictor = result.found, result.predictor
    settings = found.ranked(full_only=False)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for setting in settings:
            trials, rate = found.of(setting), found.rate(setting)
            assert rate is not None
            left.plot([trials[0].outcome.tokens_per_step / rate], [predictor.seconds(setting)], "o", color=TEXT)
            peaks = [trial.outcome.peak_memory_gib for trial in trials if trial.outcome.peak_memory_gib is not None]
            if peaks:
                right.plot([max(peaks)], [predictor.memory_gib(setting)], "o", color=SPEECH)
        for axis, title in ((left, "step, s"), (right, "memory, GiB")):
            top = 1.1 * max(axis.get_xlim()[1], axis.get_ylim()[1])
            axis.plot([0, top], [0, top], color=INK, linewidth=0.8)
            axis.set(title=title, xlabel="measured", ylabel="predicted", xlim=(0, top), ylim=(0, top))
        return svg_of(figure, "Predicted against measured", f"predicted-{result.name}")
