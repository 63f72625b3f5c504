"""The display of a run on the terminal."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tolktrain.config import Config
from tolktrain.data.records import DatasetInfo
from tolktrain.files.terminal import Console
from tolktrain.model.cost.cut import PipelineCut
from tolktrain.parallel.layout import Layout
from tolktrain.runs.metrics import Line
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun
from tolktrain.train.stages import StagePlan

_SMOOTHING = 0.9  # of the time per step from which the remaining time is estimated


class Display(NoCallback):
    """A banner for each stage; a live bar on a terminal, plain lines elsewhere. Silent on all ranks but the first."""

    def __init__(self, config: Config, plans: Sequence[StagePlan], metrics: MetricsLog, layout: Layout) -> None:
        self._config = config
        self._plans = plans
        self._metrics = metrics
        self._layout = layout
        self._console = Console(quiet=layout.rank != 0, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._seconds_per_step = 0.0

    def show_header(
        self,
        run_dir: Path,
        num_parameters: Mapping[str, int],
        zero_stage: int,
        step: int,
        kernels: str,
        cut: PipelineCut | None = None,
        machines: str = "",
    ) -> None:
        """Print the model, the layout, the data and the run directory."""
        total = sum(num_parameters.values())
        parts = ", ".join(f"{name} {_short(count)}" for name, count in num_parameters.items())
        say = self._console.print
        say(Text(self._config.run.name, "bold").append(f": {_short(total)} parameters ({parts})", "not bold"))
        say(f"layout: {self._layout.describe()}, {self._config.train.precision}, ZeRO {zero_stage}")
        for line in cut.describe() if cut is not None else ():
            say(f"  {line}")
        if machines:
            say(f"machines: {machines}")
        say(f"kernels: {kernels}")
        say(f"data: {', '.join(self._sets())}")
        say(f"folder: {run_dir}" + (f", continuing after step {step}" if step else ""))

    def say(self, text: str) -> None:
        """Print a line, on rank 0."""
        self._console.print(text)

    def on_stage_start(self, run: StageRun) -> None:
        """Banner of the stage."""
        stage, plan = run.plan.config, run.plan
        place = f"{plan.index + 1} of {len(self._config.train.stages)}"
        self._console.print(
            Text(f"\nstage {plan.name}", "bold").append(
                f" ({place}): trains {', '.join(stage.trainable)} on {', '.join(stage.mixture)};"
                f" {plan.num_steps:,} steps, {stage.tokens:,} tokens",
                "not bold",
            )
        )
        self._seconds_per_step = 0.0
        self._close_bar()
        if self._console.is_terminal and self._layout.rank == 0:
            name, text = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[text]"))
            columns = (name, BarColumn(bar_width=12), text)
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(plan.name, total=plan.num_steps, completed=run.step_in_stage, text="")
            self._bar.start()

    def on_step(self, run: StageRun) -> None:
        """Update the bar, or print a line if it is due; print validations."""
        previous = self._seconds_per_step or run.seconds
        self._seconds_per_step = _SMOOTHING * previous + (1.0 - _SMOOTHING) * run.seconds
        line, *validations = self._metrics.recent
        due = run.step_in_stage % self._config.train.log_every_steps == 0 or run.at_last_step
        if self._bar is not None:
            self._bar.update(self._task, completed=run.step_in_stage, text=self._live_progress(run, line))
        elif due:
            self._console.print(f"  {self._plain_progress(run, line)}")
        for dataset, losses in _by_dataset(validations).items():
            self._console.print(f"  validation on {dataset}: {losses}")
        if run.at_last_step:
            self._close_bar()

    def close(self) -> None:
        """Release the terminal."""
        self._close_bar()

    def _plain_progress(self, run: StageRun, line: Line) -> str:
        losses = f"loss {line['loss']:.3f} ({', '.join(_losses(line))})"
        return f"step {run.step_in_stage:,}/{run.plan.num_steps:,}  {losses}  {self._pace(run, line)}"

    def _live_progress(self, run: StageRun, line: Line) -> str:
        """Text next to the bar; short enough for 80 columns."""
        return f"{run.step_in_stage:,}/{run.plan.num_steps:,}  {'  '.join(_losses(line))}  {self._pace(run, line)}"

    def _pace(self, run: StageRun, line: Line) -> str:
        left = (self._plans[-1].last_step - run.step) * self._seconds_per_step
        skipped = "  skipped" if line["skipped"] else ""
        remaining = timedelta(seconds=round(left))
        return f"{_short(line['tokens_per_second'])} tokens/s{_memory(line)}  {remaining} left{skipped}"

    def _sets(self) -> list[str]:
        names = {name for stage in self._config.train.stages for entry in stage.mixture.values() for name in entry.sets}
        described = []
        for name in sorted(names):
            info = DatasetInfo.read(self._config.data.sets[name].path)
            hours = f", {info.hours:,.1f} h" if info.speech is not None else ""
            described.append(f"{name} ({info.num_records:,} records{hours})")
        return described

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _losses(line: Line) -> list[str]:
    if "preference_margin" in line:
        return [f"accuracy {line['preference_accuracy']:.2f}", f"margin {line['preference_margin']:.3f}"]
    return [f"{kind} {line[f'{kind}_loss']:.3f}" for kind in ("text", "speech") if line[f"{kind}_loss"] is not None]


def _memory(line: Line) -> str:
    """What the allocator of the first rank holds of its GPU; nothing without a GPU."""
    reserved = line.get("memory_reserved_gib")
    return "" if reserved is None else f"  {reserved:.1f} GiB reserved"


def _by_dataset(validations: Sequence[Line]) -> dict[str, str]:
    losses: dict[str, list[str]] = {}
    for line in validations:
        for key, value in line.items():
            if key.startswith("validation.") and key.endswith(".loss"):
                _, strategy, dataset = key.removesuffix(".loss").split(".", 2)
                accuracy = line.get(f"{key.removesuffix('.loss')}.accuracy")
                more = "" if accuracy is None else f" (accuracy {accuracy:.2f})"
                losses.setdefault(dataset, []).append(f"{strategy} {value:.3f}{more}")
    return {dataset: ", ".join(parts) for dataset, parts in losses.items()}


def _short(number: float) -> str:
    """1234567 as 1.2M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
