"""Measures what a training process costs until it asks for its first batch.

Usage, from the root of the repository, on a quiet machine:
    python docs/measure/startup.py [--repeat 5] [--config configs/quickstart.yaml] [key=value ...]

Each line is measured in processes of their own, one after the other, with one thread: CPU seconds (user and system) and
wall seconds since the process began, the largest resident memory, and how many modules are loaded. The median of the
repetitions is shown, and the range of the CPU seconds. The first process of each line, which may find a cold page
cache, is left out. The last line includes the computation of a step.
"""

import argparse
import datetime
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

POINTS = {
    "python": "Python alone",
    "torch": "import torch",
    "imports": "all imports of the trainer",
    "first batch": "until the first batch is asked for",
    "first save": "until one step is done and a checkpoint is due",
}
LIBRARIES = ("torch", "deepspeed", "megatron-core", "mosaicml-streaming")


def used(begun: float) -> str:
    """CPU and wall seconds, memory in MB and the number of modules, until now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.time() - begun
    return f"{usage.ru_utime + usage.ru_stime:.3f} {wall:.3f} {usage.ru_maxrss * 1024 / 1e6:.0f} {len(sys.modules)}"


def run_until(point: str, begun: float, config: str, overrides: list[str]) -> None:
    """Be a training process until `point`, then print what was used and end."""

    def finish() -> None:
        print(used(begun), flush=True)
        raise SystemExit

    if point == "python":
        finish()
    from torch.utils.data import DataLoader

    if point == "torch":
        finish()
    from tolktrain.checkpoint.saver import CheckpointSaver
    from tolktrain.config.load import load_config
    from tolktrain.train.run import train

    if point == "imports":
        finish()
    begin = DataLoader.__iter__

    def asked(loader: DataLoader[Any]) -> Iterator[Any]:
        if point == "first batch":
            finish()
        return begin(loader)

    DataLoader.__iter__ = asked  # type: ignore[method-assign]
    CheckpointSaver.save = lambda *_, **__: finish()  # type: ignore[method-assign,assignment]
    train(load_config(config, [*overrides, "train.max_steps=1"]))


def measured(point: str, config: str, overrides: list[str]) -> list[float]:
    """What a process of its own has used until `point`."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--until", point, "--begun", repr(time.time()), "--config", config]
        command += [*overrides, f"run.dir={folder}", "train.cpu_threads=1"]
        done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return [float(text) for text in done.stdout.split()[-4:]]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--until", choices=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    if options.until is not None:
        run_until(options.until, options.begun, options.config, options.overrides)
        return
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(
        f"`python docs/measure/startup.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {cpu[1] if cpu else ''},"
    )
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}\n")
    print("| | CPU s (median) | range | wall s | resident MB | modules |\n|---|---:|---:|---:|---:|---:|")
    for point, meaning in POINTS.items():
        measured(point, options.config, options.overrides)
        rows = [measured(point, options.config, options.overrides) for _ in range(options.repeat)]
        cpus, walls, memory, modules = (list(column) for column in zip(*rows, strict=True))
        median = statistics.median
        print(
            f"| {meaning} | {median(cpus):.2f} | {min(cpus):.2f} to {max(cpus):.2f} | {median(walls):.2f} |"
            f" {median(memory):,.0f} | {median(modules):,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
