"""Measures how fast benchmarks are encoded and scored, with and without cached units, on one rank and on two.

Usage, from the root of the repository, on a quiet machine with espeak-ng:
    python docs/measure/evaluation.py RUN [--stories 300] [--repeat 3] [--threads 1] [--out docs/benchmarks/...]

RUN is a trained run, such as runs/quickstart; a copy of it is evaluated. The benchmark is a spoken StoryCloze of
`--stories` pairs, which espeak-ng speaks. Each line is measured in processes of its own: the seconds for the units of
all recordings, including the loading of the speech tokenizer; the seconds for the scores of the model (n-grams left
out); and the seconds of the whole evaluation without the imports. Medians of the repetitions are shown. Tokens are
scored positions of distinct sequences. The table and all repetitions are written to README.md and evaluation.json in
`--out`, by default a folder of docs/benchmarks named after the date.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEROES = ("Mia the cat", "Ben the dog", "Anna the fox", "Tom the bear", "Lisa the mouse")
THINGS = ("red ball", "blue kite", "small boat", "old drum", "green hat", "yellow cup", "warm coat")
PLACES = (
    "garden",
    "forest",
    "river",
    "school",
    "market",
    "mountain",
    "harbour",
    "castle",
    "kitchen",
    "meadow",
    "bridge",
)


def speak_stories(folder: Path, count: int) -> None:
    """NUMBER_ID_correct.wav and NUMBER_ID_incorrect.wav, all different."""
    folder.mkdir()
    for number in range(count):
        hero, thing, place = (names[number % len(names)] for names in (HEROES, THINGS, PLACES))
        begin = f"On day {number + 1}, {hero} lost a {thing} near the {place}."
        endings = (f"In the end, {hero} found the {thing}.", f"In the end, the {place} was very far away.")
        for side, ending in enumerate(endings):
            path = folder / f"{2 * number + side}_story-{number}_{('correct', 'incorrect')[side]}.wav"
            subprocess.run(["espeak-ng", "-w", str(path), f"{begin} {ending}"], check=True, capture_output=True)


def evaluate_timed(run: str, suite: str) -> None:
    """Be one of the processes of an evaluation, and print what it took."""
    import torch

    from tolktrain.config.load import load_suite
    from tolktrain.evaluate import benchmark_run
    from tolktrain.evaluate.scorer import Scorer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    took = {"encoding": 0.0, "scoring": 0.0, "tokens": 0.0}
    encode, score = benchmark_run.encode_recordings, benchmark_run.score_items

    def timed_encode(*arguments: Any) -> Any:
        begin = time.perf_counter()
        found = encode(*arguments)
        took["encoding"] += time.perf_counter() - begin
        return found

    def timed_score(items: Any, context: Any, token_nll: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = score(items, context, token_nll, *arguments)
        if isinstance(getattr(token_nll, "__self__", None), Scorer):
            took["scoring"] += time.perf_counter() - begin
            took["tokens"] += sum(int(one.sequence.scored[1:].sum()) for one in {i.key: i for i in items}.values())
        return found

    benchmark_run.encode_recordings, benchmark_run.score_items = timed_encode, timed_score
    took["whole"] = benchmark_run.evaluate_benchmarks(run, load_suite(suite))["seconds"]
    if os.environ.get("RANK", "0") == "0":
        print(f"took {json.dumps(took)}", flush=True)


def measured(run: Path, suite: Path, ranks: int, threads: int) -> dict[str, float]:
    """What an evaluation by so many ranks took."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, __file__, str(run), "--suite", str(suite)],
        env=environ,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    [line] = re.findall(r"^took (.*)$", done.stdout, re.MULTILINE)
    found: dict[str, float] = json.loads(line)
    return found


COLUMNS = ("ranks", "units", "recordings/s", "encoding, s", "scored tokens/s", "scoring, s", "whole evaluation, s")


def line_of(row: dict[str, Any], stories: int) -> str:
    """A line of the table: medians of the repetitions."""
    encoding, scoring, tokens, whole = (
        statistics.median(took[key] for took in row["repetitions"])
        for key in ("encoding", "scoring", "tokens", "whole")
    )
    cells = (row["ranks"], row["units"], f"{2 * stories / encoding:,.0f}", f"{encoding:.2f}")
    cells += (f"{tokens / scoring:,.0f}", f"{scoring:.2f}", f"{whole:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def description(given: argparse.Namespace) -> dict[str, Any]:
    """Command, date, hardware and versions."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "command": f"python docs/measure/evaluation.py {' '.join(sys.argv[1:])}",
        "date": str(datetime.date.today()),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "tolktrain")},
        "run": given.run,
        "stories": given.stories,
        "threads": given.threads,
    }


def write_results(folder: Path, found: dict[str, Any]) -> None:
    """README.md and evaluation.json."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    table = [f"| {' | '.join(COLUMNS)} |", "|---:|---|---:|---:|---:|---:|---:|"]
    table += [line_of(row, found["stories"]) for row in found["rows"]]
    paragraph = (
        f"{found['date']}, {found['cpu']}, {found['cores']} cores, load {found['load_before']:.1f} before, {versions}."
        f" Benchmark: a spoken StoryCloze of {found['stories']} pairs. Model: {found['run']}, float32, threads of each"
        f" rank: {found['threads']}. Medians of {len(found['rows'][0]['repetitions'])} repetitions. Encoding: units of"
        " all recordings, with the loading of the speech tokenizer; recordings per second of all ranks. Scored"
        " tokens: positions of distinct sequences per second of scoring, of the model without n-grams. The whole"
        " evaluation is without the imports."
    )
    head = f"# Speed of benchmarks\n\n```bash\n{found['command']}\n```\n\n{textwrap.fill(paragraph, 120)}\n\n"
    (folder / "README.md").write_text(head + "\n".join(table) + "\n")
    (folder / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--stories", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--out", type=Path, help="folder for the table and all repetitions")
    parser.add_argument("--suite", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.suite is not None:
        evaluate_timed(given.run, given.suite)
        return
    found = description(given) | {"rows": []}
    print(f"| {' | '.join(COLUMNS)} |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        speak_stories(root / "stories", given.stories)
        run = shutil.copytree(given.run, root / "run", ignore=shutil.ignore_patterns("logs", "tensorboard", "samples"))
        suite, units = root / "suite.yaml", root / "units"
        suite.write_text(f"unit_cache: {units}\nbenchmarks:\n- {{name: sstorycloze, folder: {root / 'stories'}}}\n")
        for ranks in (1, 2):
            rows: dict[str, list[dict[str, float]]] = {"not cached": [], "cached": []}
            for _ in range(given.repeat):
                shutil.rmtree(units, ignore_errors=True)
                for row in rows.values():
                    row.append(measured(run, suite, ranks, given.threads))
            for kind, repetitions in rows.items():
                found["rows"].append({"ranks": ranks, "units": kind, "repetitions": repetitions})
                print(line_of(found["rows"][-1], given.stories), flush=True)
    folder = given.out or Path("docs/benchmarks") / f"{found['date']}-evaluation"
    write_results(folder, found)
    print(f"written: {folder}/README.md and evaluation.json")


if __name__ == "__main__":
    main()
