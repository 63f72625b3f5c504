"""Trials: each is `tolktrain bench` in processes of its own; its end, whatever it is, is a result."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tolktrain.benchmark.memory_limit import OUT_OF_MEMORY
from tolktrain.files.printable import printable
from tolktrain.files.reading import read_json
from tolktrain.files.writing import replace_file
from tolktrain.tune.journal import Journal
from tolktrain.tune.launch import Ended, Launcher
from tolktrain.tune.predict import Predictor
from tolktrain.tune.search import Spent
from tolktrain.tune.setting import Outcome, Setting, digest

DEEPSPEED = "deepspeed.json"
LATE = "time-out"  # status of a trial that was ended at the limit
FAILED = "failed"
_KILLED = (-9, 128 + 9)  # the second of srun
_LOG_BYTES = 1 << 16


@dataclass(frozen=True)
class TrialOptions:
    """What all trials of a search have in common."""

    path: str  # of the configuration
    overrides: tuple[str, ...]
    stage: str
    warmup: int
    speech_share: float
    limit_seconds: float  # of a trial
    memory_limit_gib: float | None  # of a rank; None for all there is


class BenchMachine:
    """Measures by `tolktrain bench`, and remembers what was measured."""

    def __init__(
        self,
        options: TrialOptions,
        predictor: Predictor,
        launcher: Launcher,
        journal: Journal,
        folder: Path,
        identity: Mapping[str, Any],
        most_trials: int,
        memory_gib: float,
        tell: Callable[[Setting, int, Outcome, bool], None],
    ) -> None:
        """A machine for one search.

        Args:
            options: of all trials.
            predictor: of memory and time.
            launcher: of the ranks.
            journal: of trials that have ended.
            folder: in which each trial has a folder of its own.
            identity: plain values on which outcomes depend: configuration, versions, device.
            most_trials: that are measured; those of the journal count too.
            memory_gib: of each rank.
            tell: is called with each trial, and with whether it was in the journal.
        """
        self.memory_gib = memory_gib
        self._options, self._predictor, self._launcher, self._journal = options, predictor, launcher, journal
        self._folder, self._identity, self._tell = folder, identity, tell
        self._left, self._count = most_trials, 0
        self._failed: set[str] = set()  # keys of trials that have failed since this start

    def predicted_gib(self, setting: Setting) -> float:
        """Memory of the fullest rank."""
        return self._predictor.memory_gib(setting)

    def predicted_seconds(self, setting: Setting) -> float:
        """Of a step."""
        return self._predictor.seconds(setting)

    def measure(self, setting: Setting, steps: int, repeat: int) -> Outcome:
        """Time that many steps. Raises `Spent` if no trial is left; repetitions are always made."""
        if not self._left and not repeat:
            raise Spent
        self._left = max(0, self._left - 1)
        self._count += 1
        what = {
            "setting": setting.overrides,
            "deepspeed": setting.entries,
            "stage": self._options.stage,
            "steps": steps,
            "repeat": repeat,
        }
        key = digest({**self._identity, **what, "document": setting.document})
        outcome = self._journal.get(key)
        was_known = outcome is not None and self._is_final(key, outcome)
        if outcome is None or not was_known:
            outcome = self._run(self._folder / key, setting, steps)
            self._journal.add(key, {"name": setting.name, **what}, outcome)
            if outcome.status == FAILED:
                self._failed.add(key)
        self._tell(setting, steps, outcome, was_known)
        return outcome

    def _is_final(self, key: str, outcome: Outcome) -> bool:
        """Whether a trial need not be made again: its limit was not lower, and it did not fail before this start."""
        if outcome.status == LATE:
            return outcome.trial_seconds >= self._options.limit_seconds
        return outcome.status != FAILED or key in self._failed

    def _run(self, folder: Path, setting: Setting, steps: int) -> Outcome:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.json"):  # of a trial that was killed
            old.unlink()
        replace_file(folder / DEEPSPEED, json.dumps(setting.entries, indent=2) + "\n")
        ended = self._launcher.run(
            self.command(folder, setting, steps), folder, self._options.limit_seconds, self._count
        )
        date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        return read_outcome(folder, ended, date)

    def command(self, folder: Path, setting: Setting, steps: int) -> list[str]:
        """The command of each rank."""
        options = self._options
        limit = options.memory_limit_gib
        batch = self._predictor.config.train.global_batch_size
        return [
            *(sys.executable, "-m", "tolktrain", "bench", options.path, "--stage", options.stage),
            *("--steps", str(steps), "--warmup", str(options.warmup), "--global-batch", str(batch)),
            *("--speech-share", str(options.speech_share), "--largest-batches", "--output", str(folder)),
            *([] if limit is None else ["--memory-limit", str(limit)]),
            *options.overrides,
            *(f"{key}={value}" for key, value in setting.overrides.items()),
            f"deepspeed.config={json.dumps(str((folder / DEEPSPEED).absolute()))}",
        ]


def read_outcome(folder: Path, ended: Ended, date: str) -> Outcome:
    """The outcome of a trial from what it has left in its folder, and from how its processes ended."""
    common: dict[str, Any] = {"trial_seconds": round(ended.seconds, 2), "date": date}
    if (folder / OUT_OF_MEMORY).exists():
        found = read_json(folder / OUT_OF_MEMORY)
        return Outcome("out of memory", message=f"rank {found['rank']}: {printable(str(found['message']))}", **common)
    if ended.is_late:
        return Outcome(LATE, message=f"not finished after {ended.seconds:.0f} s", **common)
    if any(code in _KILLED for code in ended.codes):
        return Outcome("out of memory", message="a rank was killed, as when the machine's memory runs out", **common)
    results = sorted(folder.glob("step-*.json"))
    if any(ended.codes) or None in ended.codes or len(results) != 1:
        return Outcome(FAILED, message=_last_words(folder), **common)
    result = read_json(results[0])
    [ours] = result["providers"]
    return Outcome(
        "ok",
        tokens_per_step=result["tokens_per_step"],
        seconds=tuple(ours["seconds"]),
        first_loss=ours["first_loss"],
        peak_memory_gib=ours["peak_memory_gib"],
        peak_reserved_gib=ours["peak_reserved_gib"],
        start_memory_gib=ours["start_memory_gib"],
        **common,
    )


def _last_words(folder: Path) -> str:
    """The error message of a rank, or the end of its output."""
    lines: list[str] = []
    for log in sorted(folder.glob("*.log")):
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            lines += file.read().decode(errors="replace").splitlines()
    errors: Sequence[str] = [line for line in lines if "error: " in line] or [line for line in lines if line.strip()]
    return printable(errors[-1][:500]) if errors else "no output"
