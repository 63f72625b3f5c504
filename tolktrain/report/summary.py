"""The outcome of a run as tables in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tolktrain.report.page import count, duration, loss_table, nats, percent
from tolktrain.report.rundata import DIRECTIONS, RunData, read_run


def print_summary(run_dir: str | Path, console: Console | None = None) -> None:
    """Print held-out losses per stage, baselines, accuracies with intervals, targets, and where the files are."""
    run = read_run(run_dir)
    out = console or Console()
    last = run.steps[-1]
    seconds = sum(stage.seconds for stage in run.stages)
    out.print()
    out.print(
        f"[bold]{run.name}[/bold]  {len(run.stages)} stages, {int(last['step']):,} steps,"
        f" {count(int(last.get('tokens', 0)))} tokens, {duration(seconds)} of training"
    )
    _print_losses(out, run)
    _print_choices(out, run)
    for target in (run.evaluation or {}).get("targets", []):
        mark = "[green]✓ reached    [/green]" if target["reached"] else "[red]✗ not reached[/red]"
        out.print(f"{mark}  {target['statement']}", highlight=False)
    if run.evaluation is None:
        out.print("No evaluation yet: `tolktrain evaluate CONFIG` measures baselines, choices and pooling weights.")
    if run.samples is None:
        out.print("No spoken samples yet: `tolktrain generate CONFIG` makes them.")
    out.print()
    for label, path in _files(run):
        out.print(f"{label:<16}{path}", highlight=False, soft_wrap=True)


def _print_losses(out: Console, run: RunData) -> None:
    rows = loss_table(run)
    if not rows:
        return
    table = Table(title="Held-out losses, nats per token", title_justify="left", header_style="bold")
    for name in ("set", "sequences", "tokens"):
        table.add_column(name)
    for stage in run.stages:
        table.add_column(f"after {stage.name}", justify="right")
    for name in ("evaluation", "bigram", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = f"{row['final'] / row['bigram']:.2f}" if row["final"] is not None and row["bigram"] else "–"
        stages = [nats(row["stages"].get(stage.name)) for stage in run.stages]
        table.add_row(
            row["set"], row["strategy"], row["modality"], *stages, nats(row["final"]), nats(row["bigram"]), ratio
        )
    out.print(table)


def _print_choices(out: Console, run: RunData) -> None:
    rows = (run.evaluation or {}).get("choices", [])
    if not rows:
        return
    table = Table(title="True against random continuation (chance 50 %)", title_justify="left", header_style="bold")
    table.add_column("set")
    table.add_column("prompt → continuation")
    for name in ("accuracy", "95 % interval", "right of"):
        table.add_column(name, justify="right")
    for row in rows:
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f} %"
        table.add_row(
            row["set"],
            DIRECTIONS[row["direction"]],
            percent(row["accuracy"]),
            interval,
            f"{row['correct']:g} / {row['trials']}",
        )
    out.print(table)


def _files(run: RunData) -> list[tuple[str, Path]]:
    named = [
        ("report", run.directory / "report.html"),
        ("samples", run.directory / "samples"),
        ("evaluation", run.directory / "evaluation.json"),
        ("metrics", run.directory / "metrics.jsonl"),
    ]
    return [(label, path) for label, path in named if path.exists()]
