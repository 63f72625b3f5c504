"""Prints the trials of `tolktrain tune` as tables in Markdown, for docs/benchmarks.

    python docs/measure/tuning.py runs/tune-cpu/tune.jsonl

A setting has a line: tokens per second over the median of all timed steps of its longest trials, and the memory of its
fullest rank. The search measures the configuration and the shipped files of DeepSpeed first, in the order of the file.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Trial = dict[str, Any]


def table(stage: str, trials: Sequence[Trial]) -> Iterator[str]:
    """Lines of a stage, the fastest setting first."""
    yield f"## Stage {stage}"
    yield ""
    yield "| setting | place in the search | trials | tokens/s | memory of a rank |"
    yield "|---|---:|---:|---:|---:|"
    rows = []
    settings: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        settings.setdefault((trial["name"], json.dumps(trial["deepspeed"], sort_keys=True)), []).append(trial)
    for place, ((name, _), mine) in enumerate(settings.items(), 1):
        timed = [trial for trial in mine if trial["outcome"]["status"] == "ok"]
        if not timed:
            rows.append((0.0, f"| {name} | {place} | {len(mine)} | {mine[-1]['outcome']['status']} | |"))
            continue
        most = max(trial["steps"] for trial in timed)
        seconds = [second for trial in timed if trial["steps"] == most for second in trial["outcome"]["seconds"]]
        rate = timed[0]["outcome"]["tokens_per_step"] / statistics.median(seconds)
        memory = max(trial["outcome"]["peak_memory_gib"] for trial in timed)
        rows.append((rate, f"| {name} | {place} | {len(mine)} | {rate:,.0f} | {memory:.2f} GiB |"))
    yield from (line for _, line in sorted(rows, key=lambda row: -row[0]))
    losses = [trial["outcome"]["first_loss"] for trial in trials if trial["outcome"]["first_loss"] is not None]
    took = sum(trial["outcome"]["trial_seconds"] for trial in trials)
    yield ""
    yield f"{len(trials)} trials, {took / 60:.1f} minutes; first losses from {min(losses):.6f} to {max(losses):.6f}."
    yield ""


def main(path: Path) -> None:
    """Print the tables of all stages."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    for stage in dict.fromkeys(trial["stage"] for trial in trials):
        print("\n".join(table(stage, [trial for trial in trials if trial["stage"] == stage])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
