"""The outcome of a run as tables in the terminal."""

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from tolktrain.evaluate.benchmark_table import print_benchmarks
from tolktrain.evaluate.closed_answers.table import print_answers
from tolktrain.evaluate.generation.table import print_generation
from tolktrain.evaluate.text.table import print_text_tasks
from tolktrain.files.terminal import Console
from tolktrain.report.page import count, duration, loss_table, nats, percent
from tolktrain.report.rundata import DIRECTIONS, RunData, read_run
from tolktrain.runs.paths import RunPaths


def print_summary(run_dir: str | Path, console: Console | None = None) -> None:
    """Print held-out losses per stage, baselines, accuracies with intervals, targets, benchmarks, generated speech,
    text tasks, and where the files are."""
    run = read_run(run_dir)
    out = console or Console()
    last = run.steps[-1]
    seconds = sum(stage.seconds for stage in run.stages)
    out.print()
    out.print(
        Text(run.name, "bold").append(
            f"  {len(run.stages)} stages, {int(last['step']):,} steps, {count(int(last.get('tokens', 0)))} tokens,"
            f" {duration(seconds)} of training",
            "not bold",
        )
    )
    if run.gpu_memory is not None:
        allocated, reserved = run.gpu_memory
        out.print(f"GPU memory of rank 0: {allocated:.1f} GiB allocated, {reserved:.1f} GiB reserved", highlight=False)
    _print_losses(out, run)
    _print_choices(out, run)
    _print_targets(out, run)
    if run.benchmarks is not None and run.benchmarks["rows"]:
        print_benchmarks(run.benchmarks, out)
    if run.generation is not None:
        print_generation(run.generation, out)
    if run.answers is not None:
        print_answers(run.answers, out)
    if run.text_tasks is not None and run.text_tasks["rows"]:
        print_text_tasks(run.text_tasks, out)
    if run.evaluation is None:
        out.print("No evaluation yet: `tolktrain evaluate CONFIG` measures baselines, choices and pooling weights.")
    if run.samples is None:
        out.print("No spoken samples yet: `tolktrain generate CONFIG` makes them.")
    out.print()
    for label, path in _files(run):
        out.print(f"{label:<16}{path}", highlight=False, soft_wrap=True)


def _table(title: str, first_column: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first_column, no_wrap=True)
    return table


def _print_losses(out: Console, run: RunData) -> None:
    rows = loss_table(run)
    if not rows:
        return
    table = _table("Held-out losses after each stage, nats per token", "sequences")
    evaluated = run.evaluation is not None
    for name in [*(stage.name for stage in run.stages), *(("evaluation", "bigram", "ratio") if evaluated else ())]:
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        if row["set"] != previous:
            table.add_row(Text(str(row["set"]), "bold"))
            previous = row["set"]
        ratio = f"{row['final'] / row['bigram']:.2f}" if row["final"] is not None and row["bigram"] else "–"
        stages = [nats(row["stages"].get(stage.name)) for stage in run.stages]
        same = row["strategy"] == row["modality"]
        label = row["strategy"] if same else f"{row['strategy']}, {row['modality']}"
        final = (nats(row["final"]), nats(row["bigram"]), ratio) if evaluated else ()
        table.add_row(f"  {label}", *stages, *final)
    out.print(table)


def _print_choices(out: Console, run: RunData) -> None:
    rows = (run.evaluation or {}).get("choices", [])
    if not rows:
        return
    table = _table("True against random continuation (chance 50 %)", "prompt → continuation")
    for name in ("accuracy", "95 % interval", "right", "unigram", "bigram"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        if row["set"] != previous:
            table.add_row(Text(str(row["set"]), "bold"))
            previous = row["set"]
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f} %"
        right = f"{row['correct']:g} of {row['trials']}"
        floors = [percent(row[name]) if name in row else "–" for name in ("unigram", "bigram")]
        table.add_row(f"  {DIRECTIONS[row['direction']]}", percent(row["accuracy"]), interval, right, *floors)
    out.print(table)


def _print_targets(out: Console, run: RunData) -> None:
    targets = (run.evaluation or {}).get("targets", [])
    if not targets:
        return
    out.print(f"Targets: {sum(target['reached'] for target in targets)} of {len(targets)} reached", highlight=False)
    for name in dict.fromkeys(target["set"] for target in targets):
        out.print(name, style="bold", highlight=False)
        for target in targets:
            if target["set"] == name:
                mark = Text("  ✓ ", "green") if target["reached"] else Text("  ✗ ", "red")
                out.print(mark.append(str(target["statement"]), "default"), soft_wrap=True)


def _files(run: RunData) -> list[tuple[str, Path]]:
    paths = RunPaths(run.directory)
    named = [
        ("report", paths.report),
        ("samples", paths.samples),
        ("evaluation", paths.evaluation),
        ("benchmarks", paths.benchmarks),
        ("generation", paths.generation),
        ("answers", paths.answers),
        ("text tasks", paths.text_tasks),
        ("comparison", paths.comparison.with_suffix(".html")),
        ("analysis", paths.analysis),
        ("metrics", paths.metrics),
    ]
    return [(label, path) for label, path in named if path.exists()]
