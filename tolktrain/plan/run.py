"""`tolktrain plan`: the layouts of a job, ranked by the time to the end of the recipe."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tolktrain.cluster.accelerators import ACCELERATORS, CPU, Accelerator, accelerator_of
from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile, read_deepspeed_file
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.model.local_backbone import local_architecture
from tolktrain.plan.assumptions import Assumptions, Calibration, cpu_assumptions, read_calibration
from tolktrain.plan.candidates import PIPELINE, Candidate, Cluster, Refusal, candidates
from tolktrain.plan.data_size import StageData, data_of_stages, read_sizes
from tolktrain.plan.job import JobEstimate, Recipe, estimate_job
from tolktrain.plan.limits import Limit, limits

_LARGEST_JOB = 1 << 16
# The shipped file for each ZeRO stage; the configuration's own is used for its own stage.
_FILES = {1: "zero1", 2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    gpus: tuple[int, ...] = (8,)
    gpus_per_node: int = 8
    device: str = "h100"
    price: float | None = None  # of a GPU hour
    calibration: Path | None = None
    top: int = 3  # layouts that are shown for each size
    records: int | None = None  # of the sets of a stage together, if their indexes are not here
    tokens_in_data: int | None = None  # the same in positions of sequences


@dataclass(frozen=True)
class Plan:
    """All layouts of one number of GPUs."""

    cluster: Cluster
    ranked: tuple[JobEstimate, ...]  # that fit, the fastest first; the best micro batch of each layout
    too_large: tuple[tuple[Candidate, float], ...]  # with GiB at the smallest micro batch; the best of each layout
    refused: tuple[Refusal, ...]
    limits: tuple[Limit, ...]

    def reason(self, job: JobEstimate) -> str:
        """Why a layout is slower than the best: the parts of the step in which it loses most."""
        best, mine = self.ranked[0].longest.step, job.longest.step
        losses = {name: value - getattr(best, name) for name, value in vars(mine).items()}
        worst = sorted(losses, key=lambda name: losses[name], reverse=True)[:2]
        shown = [f"{name.replace('_', ' ')} +{1e3 * losses[name]:.0f} ms" for name in worst if losses[name] > 5e-4]
        return ", ".join(shown) or "equal"


@dataclass(frozen=True)
class Plans:
    """The answer of `plan`."""

    path: str | Path
    overrides: tuple[str, ...]
    config: Config
    recipe: Recipe
    device: Accelerator
    assumed: Assumptions
    measured: tuple[str, ...]  # names of the assumptions that a calibration has replaced
    options: Options
    plans: tuple[Plan, ...]
    data: tuple[StageData, ...]  # of each stage

    def cost(self, job: JobEstimate) -> float:
        """Of a whole job, at `options.price` for a GPU hour."""
        assert self.options.price is not None
        return job.gpu_hours * self.options.price


def plan(path: str | Path, overrides: Sequence[str], options: Options) -> Plans:
    """Predict and rank the layouts for each number of GPUs; nothing is started, read from data sets or downloaded.

    Args:
        path: configuration.
        overrides: of the configuration.
        options: sizes, device and price.

    Raises:
        UserError: bad options or configuration; or the backbone's configuration is not on this machine.
    """
    device = _device(options)
    default = cpu_assumptions() if device is CPU else Assumptions()
    known = Calibration(default) if options.calibration is None else read_calibration(options.calibration, default)
    _check_device(known, options)
    assumed, measured = known.assumed, known.measured
    config = load_config(path, overrides)
    if device is not CPU and config.train.precision != "bf16":
        raise UserError(
            f"train.precision {config.train.precision}: plan predicts GPUs in bf16; set train.precision=bf16"
        )
    architecture = local_architecture(config.model, "plan")
    files = {stage: _file(path, overrides, config, name, stage) for stage, name in _FILES.items()}
    files[PIPELINE] = _file(path, overrides, config, "pipeline", 1)
    offload_file = _file(path, overrides, config, "zero3-offload", 3)
    recipe = Recipe.of(config, architecture)
    clusters = (Cluster(count, min(count, options.gpus_per_node)) for count in options.gpus)
    data = _data(config, options)
    plans = tuple(_plan(recipe, cluster, device, assumed, files, offload_file, data) for cluster in clusters)
    return Plans(path, tuple(overrides), config, recipe, device, assumed, measured, options, plans, data)


def _data(config: Config, options: Options) -> tuple[StageData, ...]:
    records = options.records
    if options.tokens_in_data is not None:
        records = options.tokens_in_data // config.train.sequence_length
    return data_of_stages(config, read_sizes(config) if records is None else {}, records)


def _plan(
    recipe: Recipe,
    cluster: Cluster,
    device: Accelerator,
    assumed: Assumptions,
    files: Mapping[int, DeepSpeedFile],
    offload_file: DeepSpeedFile,
    data: Sequence[StageData],
) -> Plan:
    config, architecture = recipe.config, recipe.shapes[0].architecture
    found, refused = candidates(config, architecture, cluster, files)
    fitting, too_large = _fitting(recipe, device, assumed, found)
    if not fitting:  # the host's memory is the last resort: it makes the update slow
        of_offload, _ = candidates(config, architecture, cluster, {3: offload_file}, zero_stages=(3,))
        fitting, more = _fitting(recipe, device, assumed, of_offload)
        too_large += more
    jobs = [estimate_job(recipe, candidate, device, assumed) for candidate in fitting]
    ranked = sorted(_best_of_each(jobs), key=lambda job: job.seconds)
    best = ranked[0].candidate if ranked else None
    shown = {_layout(job.candidate) for job in ranked}
    smallest: dict[tuple[int, ...], tuple[Candidate, float]] = {}
    for candidate, needed in too_large:
        known = smallest.get(_layout(candidate))
        if _layout(candidate) not in shown and (known is None or needed < known[1]):
            smallest[_layout(candidate)] = candidate, needed
    return Plan(
        cluster,
        tuple(ranked),
        tuple(sorted(smallest.values(), key=lambda item: item[1])),
        tuple(refused),
        limits(config, cluster, best, data),
    )


def _fitting(
    recipe: Recipe, device: Accelerator, assumed: Assumptions, found: Iterable[Candidate]
) -> tuple[list[Candidate], list[tuple[Candidate, float]]]:
    fitting, too_large = [], []
    for candidate in found:
        needed = recipe.memory(candidate, assumed).total_gib
        if needed <= device.memory_gib:
            fitting.append(candidate)
        else:
            too_large.append((candidate, needed))
    return fitting, too_large


def _layout(candidate: Candidate) -> tuple[int, ...]:
    return candidate.tensor, candidate.pipeline, candidate.zero_stage


def _best_of_each(jobs: Iterable[JobEstimate]) -> list[JobEstimate]:
    """The fastest micro batch and recomputation of each layout; of equals the one that needs less memory."""
    best: dict[tuple[int, ...], JobEstimate] = {}
    for job in jobs:
        known = best.get(_layout(job.candidate))
        if known is None or (job.seconds, job.memory.total_gib) < (known.seconds, known.memory.total_gib):
            best[_layout(job.candidate)] = job
    return list(best.values())


def _file(path: str | Path, overrides: Sequence[str], config: Config, name: str, zero_stage: int) -> DeepSpeedFile:
    """DeepSpeed's file for a ZeRO stage: the configuration's own if it has that stage, otherwise the shipped one."""
    own = read_deepspeed_file(config)
    stage = own.entries.get("zero_optimization", {}).get("stage") if isinstance(own.entries, dict) else None
    if name in _FILES.values() and zero_stage == (config.deepspeed.zero_stage or stage):
        return own
    shipped = load_config(path, [*overrides, f"deepspeed.config=configs/deepspeed/{name}.json"])
    try:
        return read_deepspeed_file(shipped)
    except UserError:
        return own


def _check_device(calibration: Calibration, options: Options) -> None:
    """Raise UserError if the measurements are those of another device."""
    if calibration.device is None:
        return
    kind = CPU if re.search(CPU.pattern, calibration.device) else accelerator_of(calibration.device)
    name = "unknown to plan" if kind is None else kind.name
    if name != options.device:
        raise UserError(
            f"--calibration {options.calibration}: its device, {calibration.device}, is {name}, but --device is"
            f" {options.device}; measure on the device that is planned for"
        )


def _device(options: Options) -> Accelerator:
    for count in options.gpus:
        if not 1 <= count <= _LARGEST_JOB:
            raise UserError(f"--gpus {count}: expected numbers from 1 to {_LARGEST_JOB:,}, such as 8,64,512")
        if count > options.gpus_per_node and count % options.gpus_per_node:
            near = count - count % options.gpus_per_node
            raise UserError(
                f"--gpus {count} does not fill nodes of {options.gpus_per_node}; use {near} or"
                f" {near + options.gpus_per_node}, or set --gpus-per-node"
            )
    known = {device.name: device for device in (*ACCELERATORS, CPU)}
    if options.device not in known:
        raise UserError(f"--device {options.device!r} is unknown; use one of {', '.join(known)}")
    return known[options.device]
