"""What `tune` shows while it searches, and its answer."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console
from tolktrain.tune.answer import StageResult
from tolktrain.tune.predict import Predictor
from tolktrain.tune.search import Found
from tolktrain.tune.setting import Outcome, Setting

_SHOWN = 8  # settings of a stage, besides the shipped ones


def print_trial(
    stage: str, setting: Setting, steps: int, outcome: Outcome, was_known: bool, console: Console, memory_only: bool
) -> None:
    """One line for a trial that has ended."""
    if outcome.is_ok and memory_only:
        result = _gib(outcome.peak_memory_gib)
    elif outcome.is_ok:
        result = f"{outcome.tokens_per_step / statistics.median(outcome.seconds):,.0f} tokens/s"
    else:
        result = f"{outcome.status}: {outcome.message}" if outcome.status == "failed" else outcome.status
    label = f" ({setting.label})" if setting.label else ""
    known = ", measured before" if was_known else f", {outcome.trial_seconds:.0f} s"
    length = "1 step" if steps == 1 else f"{steps} steps"
    console.print(f"{stage}: {setting.name}{label}, {length}: {result}{known}")


def print_stage(result: StageResult, console: Console) -> None:
    """The settings of a stage, the fastest first, with all shipped ones."""
    found = result.found
    ranked = found.ranked()
    shown = [setting for place, setting in enumerate(ranked) if place < _SHOWN or setting.label]
    table = Table(
        title=f"stage {result.name}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(("setting", "from", "tokens/s", "memory", "predicted")):
        table.add_column(heading, justify="right" if number > 1 else "left")
    for setting in shown:
        table.add_row(*row_of(result, setting))
    console.print()
    console.print(table)
    for trial in found.trials:
        if not trial.outcome.is_ok and trial.setting.label:
            console.print(f"  {trial.setting.label}: {trial.outcome.status} {trial.outcome.message}")
    for line in remarks(found):
        console.print(line)


def row_of(result: StageResult, setting: Setting) -> tuple[str, ...]:
    """Cells of a measured setting: name, origin, rate, measured and predicted memory."""
    found = result.found
    rate = found.rate(setting)
    peaks = [trial.outcome.peak_memory_gib for trial in found.of(setting) if trial.outcome.peak_memory_gib is not None]
    return (
        setting.name,
        setting.label,
        "" if rate is None else f"{rate:,.0f}",
        f"{max(peaks):.2f} GiB" if peaks else "unknown",
        f"{result.predictor.memory_gib(setting):.2f} GiB",
    )


def remarks(found: Found) -> list[str]:
    """Sentences about a search: noise, disqualified settings, and how it ended."""
    lines = []
    if found.noise is not None:
        lines.append(f"differences under {100 * found.noise:.1f} % are noise (repetitions of the same settings)")
    for setting in dict.fromkeys(trial.setting for trial in found.trials):
        if found.of(setting) and found.differs(setting):
            losses = [trial.outcome.first_loss for trial in found.of(setting)]
            lines.append(
                f"disqualified: {setting.name}: its first loss is {losses[0]}, that of the others is"
                f" {found.expected_loss}; all settings must compute the same training"
            )
        elif found.of(setting) and not found.may_answer(setting):
            lines.append(f"not an answer: {setting.name}: without ZeRO, gradients are accumulated in bf16")
    if found.is_spent:
        lines.append("the trials were used up before the search ended; --trials allows more")
    return lines


def print_fits(
    stage: str, found: Found, fits: Mapping[Setting, int | None], predictor: Predictor, console: Console
) -> None:
    """The largest micro batch of each layout, with its memory."""
    table = Table(
        title=f"stage {stage}: largest micro batches", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for number, heading in enumerate(("layout", "micro batch", "allocated", "reserved", "predicted", "next larger")):
        table.add_column(heading, justify="right" if number else "left")
    for family, size in fits.items():
        name = family.name.replace(f", micro batch {family.micro_batch_size}", "")
        if size is None:
            table.add_row(name, "none fits", "", "", f"{predictor.memory_gib(family):.1f} GiB", "")
            continue
        setting = family.but(micro_batch_size=size)
        outcome = found.of(setting)[-1].outcome
        table.add_row(
            name,
            str(size),
            _gib(outcome.peak_memory_gib),
            _gib(outcome.peak_reserved_gib),
            f"{predictor.memory_gib(setting):.1f} GiB",
            _next_larger(found, setting),
        )
    console.print()
    console.print(table)
    for line in remarks(found):
        console.print(line)


def _next_larger(found: Found, setting: Setting) -> str:
    """Why there is no larger micro batch."""
    same = setting.but(micro_batch_size=0)
    for trial in found.trials:
        larger = trial.setting.micro_batch_size > setting.micro_batch_size
        if larger and trial.setting.but(micro_batch_size=0) == same and not trial.outcome.is_ok:
            return trial.outcome.status
    for item in found.pruned:
        larger = item.setting.micro_batch_size > setting.micro_batch_size
        if larger and item.setting.but(micro_batch_size=0) == same:
            return item.reason
    return "all of a rank's share"


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} GiB"


def print_answer(
    results: Sequence[StageResult], together: Setting, override: Path, folder: Path, console: Console
) -> None:
    """The answer, and where it is."""
    console.print()
    console.print(f"fastest: {together.name}", style="bold")
    for result in results:
        rate, own = result.found.rate(together), result.found.rate(result.found.trials[0].setting)
        gain = ""
        if own is not None and rate is not None:
            within = max(rate / own, own / rate) - 1 <= (result.found.noise or 0.0)
            gain = f", {rate / own:.2f}x {result.found.trials[0].setting.label}{' (within noise)' if within else ''}"
        console.print(f"  stage {result.name}: {rate:,.0f} tokens/s{gain}")
        best = result.found.best
        if best is not None and best != together:
            console.print(f"  fastest in stage {result.name} alone: {best.name} ({found_rate(result, best)})")
    console.print(f"train with it: tolktrain train {override}")
    console.print(f"report: {folder / 'report.html'}")


def found_rate(result: StageResult, setting: Setting) -> str:
    """Tokens per second, in words."""
    rate = result.found.rate(setting)
    return "not measured" if rate is None else f"{rate:,.0f} tokens/s"
