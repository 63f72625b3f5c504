"""`tolktrain tune`: search each stage of a recipe, and leave the answer for `train` and a calibration for `plan`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.cluster.environment import alone
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.config.training import StageConfig
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.model.local_backbone import RANDOM_BACKBONE, freezes_random_backbone, local_architecture
from tolktrain.plan.candidates import Cluster
from tolktrain.plan.job import Recipe
from tolktrain.tune.answer import StageResult, calibration, write_answer, write_calibration
from tolktrain.tune.journal import Journal
from tolktrain.tune.launch import Launcher
from tolktrain.tune.predict import Device, Predictor
from tolktrain.tune.search import Lengths, Search, fastest_together
from tolktrain.tune.setting import Outcome, Setting
from tolktrain.tune.space import build_space, shipped_files
from tolktrain.tune.terminal import print_answer, print_fits, print_stage, print_trial
from tolktrain.tune.trials import BenchMachine, TrialOptions

JOURNAL, CALIBRATION, REPORT, TUNED, TRIALS = "tune.jsonl", "calibration.json", "report.html", "tuned", "trials"
_CPU_PROCESSES = 2
_CPU_MEMORY = 0.9  # of the machine, for all ranks
# Relative difference of first losses that rounding explains, by precision.
_LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    stages: tuple[str, ...] = ()  # that are tuned; all if empty
    trials: int = 24  # measured in each stage, at most
    steps: int = 6  # timed in a trial at full length
    warmup: int = 2  # steps before them
    processes: int | None = None  # on this machine
    limit_seconds: float = 900.0  # of a trial
    memory_gib: float | None = None  # of a rank
    speech_share: float = 0.46  # of the positions
    compiles: bool | None = None  # whether torch.compile is tried; on GPUs if None
    memory_only: bool = False  # whether only the largest micro batches are searched
    output: Path | None = None  # folder; <run.dir>/tune-<run.name> if None


@dataclass(frozen=True)
class Ground:
    """The machine, and how ranks start on it."""

    device: Device
    launcher: Launcher
    versions: Mapping[str, str]

    @property
    def cluster(self) -> Cluster:
        """As `plan` has it."""
        size, nodes = self.launcher.world_size, self.launcher.num_nodes
        return Cluster(size, size // nodes)

    def memory_gib(self, given: float | None) -> float:
        """Of each rank."""
        if given is not None:
            return given
        if self.device.kind == "cuda":
            return self.device.memory_gib
        return _CPU_MEMORY * self.device.memory_gib / self.cluster.gpus_per_node


def tune(path: str, overrides: Sequence[str], options: Options, command: Sequence[str]) -> Path:
    """Find the fastest setting of each stage of a recipe, and of the recipe as a whole.

    Global batch, sequence length, precision and data stay. Weights are random and data is synthetic. Trials that have
    ended are kept in `tune.jsonl`: after any end, the same command continues.

    Args:
        path: configuration.
        overrides: of the configuration.
        options: of the search.
        command: for the report.

    Returns:
        The folder of the results.

    Raises:
        UserError: bad options or configuration, or no setting could be measured.
    """
    config = load_config(path, overrides)
    stages = _stages(config, options)
    architecture = local_architecture(config.model, "tune")
    ground = find_ground(options)
    folder = (options.output or Path(config.run.dir) / f"tune-{config.run.name}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    recipe = Recipe.of(config, architecture)
    shapes = dict(zip((stage.name for stage in config.train.stages), recipe.shapes, strict=True))
    files = shipped_files(path, overrides)
    predictors = {stage.name: Predictor(config, shapes[stage.name], ground.cluster, ground.device) for stage in stages}
    tuning = Tuning(path, tuple(overrides), config, options, ground, folder, console)
    with _opened(folder / JOURNAL) as journal:
        if options.memory_only:
            for stage in stages:
                search = tuning.search(stage, predictors[stage.name], files, journal)
                fits = search.fit()
                print_fits(stage.name, search.found, fits, predictors[stage.name], console)
            return folder
        results = []
        for stage in stages:
            search = tuning.search(stage, predictors[stage.name], files, journal)
            result = StageResult(stage.name, stage.tokens, predictors[stage.name], search.run())
            if result.found.best is None:
                raise UserError(f"no setting could be measured in stage {stage.name!r}: {_reason(result)}")
            print_stage(result, console)
            results.append(result)
        together = tuning.together(stages, results, journal)
    tuning.write(results, together, command)
    return folder


def _reason(result: StageResult) -> str:
    """Of the first trial."""
    trials = result.found.trials
    if not trials:
        return "all of them need more memory than there is, by prediction; see tolktrain plan"
    return f"{trials[0].setting.name}: {trials[0].outcome.status}: {trials[0].outcome.message}"


@dataclass(frozen=True)
class Tuning:
    """A search for several stages."""

    path: str
    overrides: tuple[str, ...]
    config: Config
    options: Options
    ground: Ground
    folder: Path
    console: Console

    def search(
        self, stage: StageConfig, predictor: Predictor, files: Mapping[str, Mapping[str, Any]], journal: Journal
    ) -> Search:
        """The search of a stage."""
        options = self.options
        compiles = self.ground.device.kind == "cuda" if options.compiles is None else options.compiles
        space = build_space(predictor, files, compiles)
        lengths = Lengths(1, 1) if options.memory_only else Lengths(min(2, options.steps), options.steps)
        tolerance = _LOSS_TOLERANCE[self.config.train.precision]
        return Search(space, self.machine(stage, predictor, journal, options.trials), lengths, tolerance)

    def machine(self, stage: StageConfig, predictor: Predictor, journal: Journal, trials: int) -> BenchMachine:
        """What measures the settings of a stage."""
        options, ground = self.options, self.ground
        memory = ground.memory_gib(options.memory_gib)
        # Without a limit, a rank on a CPU would take the memory of the whole machine.
        limit = memory if options.memory_gib is not None or ground.device.kind == "cpu" else None
        warmup = 1 if options.memory_only else options.warmup
        of_trials = TrialOptions(
            self.path, self.overrides, stage.name, warmup, options.speech_share, options.limit_seconds, limit
        )
        return BenchMachine(
            of_trials,
            predictor,
            ground.launcher,
            journal,
            self.folder / TRIALS,
            self._identity(stage, warmup, limit),
            trials,
            memory,
            self._tell(stage.name),
        )

    def _identity(self, stage: StageConfig, warmup: int, limit: float | None) -> dict[str, Any]:
        """Everything on which an outcome depends, except the setting."""
        config = self.config.model_dump(mode="json", include={"model", "data", "train", "kernels"})
        config["seed"] = self.config.run.seed
        ground = self.ground
        return {
            "config": config,
            "stage": stage.name,
            "warmup": warmup,
            "speech_share": self.options.speech_share,
            "memory_limit": None if limit is None else round(limit, 3),
            "device": ground.device.name,
            "world_size": ground.launcher.world_size,
            "num_nodes": ground.launcher.num_nodes,
            "versions": dict(ground.versions),
        }

    def _tell(self, stage: str) -> Callable[[Setting, int, Outcome, bool], None]:
        def tell(setting: Setting, steps: int, outcome: Outcome, was_known: bool) -> None:
            print_trial(stage, setting, steps, outcome, was_known, self.console, self.options.memory_only)

        return tell

    def together(self, stages: Sequence[StageConfig], results: Sequence[StageResult], journal: Journal) -> Setting:
        """The setting for a run with all tuned stages; each stage's best ones are measured in the others too."""
        leading = [setting for result in results for setting in result.found.ranked()[:2]]
        for stage, result in zip(stages, results, strict=True):
            extra = len(leading)
            machine = self.machine(stage, result.predictor, journal, extra)
            for setting in dict.fromkeys(leading):
                if not result.found.of(setting, result.found.full):
                    result.found.measure(machine, setting)
        found = {result.name: result.found for result in results}
        tokens = {result.name: result.tokens for result in results}
        measured = [setting for result in results for setting in result.found.ranked()]
        together = fastest_together(found, tokens, measured)
        if together is None:
            raise UserError("no setting could be measured in all stages; tune them one by one with --stage")
        return together

    def write(self, results: Sequence[StageResult], together: Setting, command: Sequence[str]) -> None:
        """Write the answers, the calibration and the report."""
        from tolktrain.tune.page import write_page  # draws, which takes a second to import

        tuned, ground = self.folder / TUNED, self.ground
        override = write_answer(tuned, self.path, self.overrides, together)
        for result in results:
            assert result.found.best is not None
            if len(results) > 1:
                write_answer(tuned / result.name, self.path, self.overrides, result.found.best)
        content = calibration(self.path, ground.device, ground.launcher.world_size, ground.versions, results)
        write_calibration(self.folder / CALIBRATION, content)
        write_page(
            self.folder / REPORT, self.config, ground.device, ground.versions, results, together, content, command
        )
        print_answer(results, together, override, self.folder, self.console)
        if freezes_random_backbone(self.config):
            self.console.print(f"note: {RANDOM_BACKBONE}")


def _stages(config: Config, options: Options) -> list[StageConfig]:
    known = {stage.name: stage for stage in config.train.stages}
    for name in options.stages:
        if name not in known:
            raise UserError(f"--stage {name!r} is no stage of the configuration; it has {', '.join(known)}")
    for name, value in (("trials", options.trials), ("steps", options.steps)):
        if value < 1:
            raise UserError(f"--{name} {value} is too small; use 1 or more")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes} is too small; use 1 or more")
    if options.warmup < 0 or options.limit_seconds <= 0 or (options.memory_gib or 1.0) <= 0:
        raise UserError("--warmup must not be negative, and --limit and --memory must be above 0")
    return [known[name] for name in dict.fromkeys(options.stages or known)]


def find_ground(options: Options, environ: Mapping[str, str] = os.environ) -> Ground:
    """What this machine or Slurm allocation has.

    Raises:
        UserError: the number of processes cannot be started here, or several processes tune.
    """
    if "RANK" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError("tune starts the ranks itself; start it once, without torchrun or srun")
    command = [sys.executable, "-m", "tolktrain.tune.probe"]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the device cannot be found out: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    device = Device(found["name"], found["kind"], found["count"], found["memory_gib"])
    nodes = int(environ.get("SLURM_JOB_NUM_NODES", "1")) if "SLURM_JOB_ID" in environ else 1
    by_slurm = "SLURM_JOB_ID" in environ
    if by_slurm:
        usual = int(environ.get("SLURM_NTASKS", "0")) or nodes * device.count
    else:
        usual = device.count if device.kind == "cuda" else min(_CPU_PROCESSES, device.count)
    processes = usual if options.processes is None else options.processes
    if processes % nodes:
        raise UserError(
            f"--processes: {processes} ranks do not divide evenly over the {nodes} nodes of this allocation; use a"
            f" multiple of {nodes}"
        )
    if device.kind == "cuda" and processes > nodes * device.count:
        where = f"each of the {nodes} nodes has" if nodes > 1 else "this machine has"
        raise UserError(
            f"--processes: {processes} ranks need a GPU each, but {where} {device.count}; use {nodes * device.count} at"
            " most"
        )
    return Ground(device, Launcher(processes, nodes, by_slurm), found["versions"])


@contextmanager
def _opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()
