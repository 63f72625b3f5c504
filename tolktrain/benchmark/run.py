"""`tolktrain bench`: the whole training step of a configuration, timed on synthetic data."""

import gc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from tolktrain.benchmark.count.counter import Operation, launch_counter
from tolktrain.benchmark.count.result import SHORT_HEADINGS, Count, lines_of, sentences, short_rows_of, write_count
from tolktrain.benchmark.count.run import check_countable, device_of, read_measured
from tolktrain.benchmark.facts import device_name, facts
from tolktrain.benchmark.measure import Measurement, measure
from tolktrain.benchmark.providers import AGAINST, OURS, EngineRunner, Provider, Setting, make_provider
from tolktrain.benchmark.reference import check_published
from tolktrain.benchmark.report import Entry, Report, print_report, write_report
from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.cluster.accelerators import Accelerator
from tolktrain.cluster.device_models import BOUND, LIKELY
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.local_backbone import local_architecture
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.process import set_threads
from tolktrain.train.resolved import ResolvedSettings, choose_kernels
from tolktrain.train.utilization import Utilization

_OUT_OF_MEMORY = "out of memory|CUBLAS_STATUS_ALLOC_FAILED"


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    stage: str | None = None  # name of the stage whose step is timed; the last if None
    steps: int = 20  # that are timed
    warmup: int = 5  # steps before them
    accumulation: int = 1  # micro batches of a step
    speech_share: float = 0.46  # of the positions
    against: tuple[str, ...] = ()  # further providers, of `AGAINST`
    compiles: bool = True  # whether the strongest plain form is compiled
    count: bool = False  # also bytes, FLOPs and launches of our step; on the null GPU nothing is timed
    device: str | None = None  # whose times are predicted for the counts; the present one if None
    calibration: Path | None = None  # measured rates for these predictions
    output: Path | None = None  # folder of the result; <run.dir>/bench-<run.name> if None


def bench(path: str | Path, overrides: Sequence[str], options: Options, command: Sequence[str]) -> Path:
    """Time our step and those of other providers on the same batches; print the result and write it.

    Weights are random and data is synthetic: neither the data sets nor the backbone's weights are read, and nothing is
    downloaded.

    Args:
        path: configuration.
        overrides: of the configuration.
        options: what is measured.
        command: for the result.

    Returns:
        The JSON file of the result; a Markdown file of the same name is written next to it.

    Raises:
        UserError: bad options or configuration, or our own step does not fit into memory.
    """
    config = load_config(path, overrides)
    _check(config, options)
    values = read_measured(options.calibration) if options.calibration else {}
    providers = [OURS, *(make_provider(name, options.compiles) for name in dict.fromkeys(options.against))]
    # All configurations are read before anything is measured.
    configs = [_one_step(load_config(path, [*overrides, *item.overrides]), options) for item in providers]
    stage = _stage(config, options.stage)
    architecture = local_architecture(config.model, "bench")
    if "published" in options.against:
        check_published(architecture)
    ProcessEnvironment.detect().export()
    layout = initialize()
    set_threads(layout, config.train.cpu_threads)
    if options.count:
        check_countable(config, layout.device.type)
    kind = device_of(options.device, device_name(layout)) if options.count else None
    console = Console(highlight=False, soft_wrap=True)
    steps = _make_steps(config, architecture, options, pinned=layout.device.type == "cuda")
    report = _empty_report(config, architecture, stage, options, layout, steps[options.warmup :], command)
    folder = options.output or Path(config.run.dir) / f"bench-{config.run.name}"
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is to be known before, not after
    for provider, own in zip(providers, configs, strict=True):
        console.print(f"measuring {provider.name}: {provider.what}")
        settings = ResolvedSettings.of(own, architecture, layout)
        rates = learning_rates_at(stage, 0, stage.tokens)
        only_counts = options.count and launch_counter() is not None  # on the null GPU
        setting = Setting(own, architecture, stage, layout, rates, settings, draws_weights=not only_counts)
        counted = list[Operation]()
        measured = _measured(provider, setting, steps, options, counted)
        if measured is None and provider is OURS and not counted:
            raise UserError(
                f"the step does not fit into the memory of {device_name(layout)}; lower train.micro_batch_size"
                f" (now {config.train.micro_batch_size}) or set train.activation_checkpointing=layers"
            )
        _free_memory(layout.device)
        if counted and kind is not None:
            count = _count(report, counted, kind, values, measured)
            files = write_count(count, folder)
            _print_count(count, files, console)
        if only_counts:
            return files[0]
        report.entries.append(Entry(provider, measured))
    print_report(report, console)
    files = write_report(report, folder)
    for file in files:
        console.print(str(file))
    return files[0]


def _check(config: Config, options: Options) -> None:
    unknown = [name for name in options.against if name not in AGAINST]
    if unknown:
        raise UserError(f"--against {unknown[0]!r} is unknown; expected one or more of {', '.join(AGAINST)}, by commas")
    least = {"steps": 1, "warmup": 0, "accumulation": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            raise UserError(f"--{name} {getattr(options, name)} is too small; use {smallest} or more")
    world_size = ProcessEnvironment.detect().world_size
    if world_size > 1:
        raise UserError(f"bench measures one process, but there are {world_size}; start it without torchrun or srun")
    parallel = config.parallel
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(parallel, name) > 1:
            raise UserError(f"bench measures one process; set parallel.{name}=1 (it is {getattr(parallel, name)})")


def _one_step(config: Config, options: Options) -> Config:
    """The configuration with a step of `options.accumulation` micro batches."""
    size = config.train.micro_batch_size * options.accumulation
    return config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})


def _stage(config: Config, name: str | None) -> StageConfig:
    stages = {stage.name: stage for stage in config.train.stages}
    if name is None:
        return config.train.stages[-1]
    if name not in stages:
        raise UserError(f"--stage {name!r} is no stage of the configuration; it has {', '.join(stages)}")
    return stages[name]


def _make_steps(config: Config, architecture: Architecture, options: Options, pinned: bool) -> list[list[Batch]]:
    """Micro batches of every step, warm-up included."""
    interleaving, train = config.data.interleaving, config.train
    units = units_per_word(options.speech_share, interleaving, architecture.num_codebooks)
    count = options.accumulation
    made = random_batches(
        count * (options.warmup + options.steps),
        train.micro_batch_size,
        train.sequence_length,
        architecture.text_vocab_size,
        Speech(architecture.num_units, architecture.num_codebooks, units),
        interleaving,
        config.run.seed,
    )
    batches = [batch.pin_memory() for batch in made] if pinned else made
    return [batches[first : first + count] for first in range(0, len(batches), count)]


def _empty_report(
    config: Config,
    architecture: Architecture,
    stage: StageConfig,
    options: Options,
    layout: Layout,
    timed: Sequence[Sequence[Batch]],
    command: Sequence[str],
) -> Report:
    total = StepCounts.of(batch for batches in timed for batch in batches)
    counts = StepCounts(*(round(getattr(total, field.name) / len(timed)) for field in fields(total)))
    return Report(
        name=config.run.name,
        stage=stage.name,
        trainable=stage.trainable,
        precision=config.train.precision,
        micro_batch_size=config.train.micro_batch_size,
        accumulation=options.accumulation,
        sequence_length=config.train.sequence_length,
        warmup=options.warmup,
        counts=counts,
        flops=step_flops(architecture, counts, stage.trainable),
        peak=Utilization.of(architecture, config, layout).peak,
        facts=facts(layout, choose_kernels(config, architecture, layout.device.type).description, command),
        entries=[],
    )


def _measured(
    provider: Provider,
    setting: Setting,
    steps: Sequence[Sequence[Batch]],
    options: Options,
    counted: list[Operation],
) -> Measurement | None:
    """Measure a provider; None if it runs out of memory, or on the null GPU if it counts.

    The operations of our step are appended to `counted` if they are to be counted.
    """
    measured = None
    try:
        runner = provider.start(setting)
        try:
            if options.count and launch_counter() is not None:
                runner.step(steps[0])  # compiles
            else:
                measured = measure(runner, steps, options.warmup, setting.layout.device)
            if options.count and isinstance(runner, EngineRunner) and provider is OURS:
                counted += runner.count(steps[-1])
            return measured
        finally:
            runner.close()
    except RuntimeError as error:
        # Triton's and cuBLAS's own failures to allocate are of no kind of their own.
        if not isinstance(error, torch.OutOfMemoryError) and not re.search(_OUT_OF_MEMORY, str(error)):
            raise
        return measured


def _count(
    report: Report,
    operations: Sequence[Operation],
    device: Accelerator,
    values: Mapping[str, Any],
    measured: Measurement | None,
) -> Count:
    models = (BOUND, LIKELY.measured(values, device))
    is_null = launch_counter() is not None
    facts = {name: value for name, value in report.facts.items() if name != "memory"}
    return Count(
        name=report.name,
        description=report.description,
        device=device,
        models=models,
        lines=lines_of(operations, device, models),
        model_flops=report.flops.total,
        exact_launches=is_null,
        facts={**facts, "device": "null GPU"} if is_null else report.facts,
        measured_seconds=None if measured is None else measured.percentiles[1],
    )


def _print_count(count: Count, files: Sequence[Path], console: Console) -> None:
    table = Table(title=count.name, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(SHORT_HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in short_rows_of(count):
        table.add_row(*row)
    console.print()
    console.print(table)
    for line in (*sentences(count), *map(str, files)):
        console.print(line)


def _free_memory(device: torch.device) -> None:
    """Free the memory of the last provider. Its frames no longer exist, even if it failed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
