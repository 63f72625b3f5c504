"""The runs of the sweep: their configurations, and processes that train and measure them, several side by side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tolktrain.benchmark.ablations.items import RunItems, read_items
from tolktrain.cluster.signals import EXIT_PREEMPTED
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError

FULL = "full"
VARIANTS: Mapping[str, str] = {
    FULL: "quickstart.yaml",
    "no-pooling": "ablations/no-pooling.yaml",
    "static-pooling": "ablations/static-pooling.yaml",
    "no-input-adapter": "ablations/no-input-adapter.yaml",
    "no-residual": "ablations/no-residual.yaml",
    "early-fusion": "ablations/early-fusion.yaml",
    "dynamic-pooling": "ablations/dynamic-pooling.yaml",
    "no-output-adapter": "ablations/no-output-adapter.yaml",
}
"""Configurations by variant, in configs/. The last two run only if they are named."""
USUAL = tuple(VARIANTS)[:-2]

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """A run of the sweep."""

    variant: str
    seed: int
    out: Path  # folder of the sweep

    @property
    def name(self) -> str:
        """Of its run directory in `out`."""
        return f"{self.variant}-{self.seed}"

    @property
    def items(self) -> Path:
        """File of its items; exists when it is trained and measured."""
        return self.out / "items" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.out / "logs" / f"{self.name}.log"

    def overrides(self, config: Config, steps: int | None, threads: int, more: Sequence[str]) -> list[str]:
        """The overrides of its configuration; with `steps`, all stages are shortened or lengthened alike."""
        return [
            f"run.name={self.name}",
            f"run.dir={self.out}",
            f"run.seed={self.seed}",
            "evaluation.after_training=false",
            "train.validation.sets=[]",
            f"train.cpu_threads={threads}",
            *([] if steps is None else _scaled(config, steps)),
            *more,
        ]


def _scaled(config: Config, steps: int) -> list[str]:
    """Overrides for a training of `steps` steps with the same proportions."""
    train = config.train
    total = sum(stage.tokens for stage in train.stages)
    if steps < len(train.stages):
        raise UserError(f"--steps {steps}: the recipe has {len(train.stages)} stages, which need a step each")
    share = steps * train.tokens_per_step / total
    ends = [
        round(steps * sum(stage.tokens for stage in train.stages[: n + 1]) / total) for n in range(len(train.stages))
    ]
    found = []
    for number, stage in enumerate(train.stages):
        begin = ends[number - 1] if number else 0
        ends[number] = max(ends[number], begin + 1)  # no stage is empty
        key = f"train.stages.{number}"
        found.append(f"{key}.tokens={(ends[number] - begin) * train.tokens_per_step}")
        found.append(f"{key}.schedule.warmup_steps={round(stage.schedule.warmup_steps * share)}")
        found.append(f"{key}.schedule.decay_steps={round(stage.schedule.decay_steps * share)}")
    return found


def plan(out: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """All runs, all variants of one seed before the next seed. Raises UserError for an unknown variant."""
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"--variants: unknown variant {name!r}; known are {', '.join(VARIANTS)}")
    return [Run(variant, seed, out) for seed in seeds for variant in variants]


def train_all(
    runs: Sequence[Run],
    command: Callable[[Run], list[str]],
    folder: Path,
    processes: int,
    say: Callable[[str], None],
) -> list[Run]:
    """Train and measure the runs that are not done, `processes` at a time; returns those that failed.

    A signal (INT, TERM) is passed on to the processes, which save a checkpoint and end; then KeyboardInterrupt is
    raised. The next call continues from the checkpoints.

    Args:
        runs: of the sweep.
        command: of the process of a run.
        folder: that the processes work in.
        processes: most that run at a time.
        say: gets a line per event.
    """
    waiting = [run for run in runs if not run.items.is_file()]
    say(f"{len(runs)} runs, of which {len(runs) - len(waiting)} are done")
    running: dict[Run, subprocess.Popen[bytes]] = {}
    failed: list[Run] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                running[run] = _start(run, command(run), folder)
                say(f"{run.name}: started")
            time.sleep(_POLL_SECONDS)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode == EXIT_PREEMPTED:
                    raise KeyboardInterrupt  # the machine stops it, and so the others
                if process.returncode or not run.items.is_file():
                    failed.append(run)
                    say(f"{run.name}: failed with exit code {process.returncode}, see {run.log}")
                else:
                    say(f"{run.name}: done")
    finally:
        _stop(list(running.values()))
    return failed


def _start(run: Run, command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as output:
        # A session of its own, so that Ctrl-C reaches it once: through this process.
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask processes to save and end, and wait for them."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def worker_command(run: Run, config: Path, overrides: Sequence[str]) -> list[str]:
    """The command of a process that trains and measures a run."""
    return [sys.executable, "-m", "tolktrain.benchmark.ablations.worker", str(config), str(run.items), *overrides]


def finished(runs: Sequence[Run]) -> dict[Run, RunItems]:
    """The items of the runs that are done.

    Raises UserError if their tokens differ, which happens if a folder holds sweeps of different lengths.
    """
    found = {run: read_items(run.items) for run in runs if run.items.is_file()}
    tokens = {items.tokens: run for run, items in found.items()}
    if len(tokens) > 1:
        (one, first), (two, second) = list(tokens.items())[:2]
        raise UserError(
            f"{first.items} is after {one} tokens, {second.items} after {two}; variants are compared after equal"
            " tokens: give each length its own --out"
        )
    return found


def configuration(folder: Path, variant: str, overrides: Sequence[str] = ()) -> tuple[Path, Config]:
    """The file and the configuration of a variant. Raises UserError if it is missing, or an override is wrong."""
    path = folder / VARIANTS[variant]
    return path, load_config(path, overrides)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
