"""`tolktrain bench`: the whole training step of a configuration, timed on synthetic data."""

import gc
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
from tolktrain.benchmark.memory_limit import (
    OUT_OF_MEMORY,
    is_out_of_memory,
    limit_memory,
    process_memory_gib,
    report_out_of_memory,
)
from tolktrain.benchmark.providers import AGAINST, OURS, EngineRunner, Provider, Setting, make_provider
from tolktrain.benchmark.reference import check_published
from tolktrain.benchmark.report import Entry, Report, print_report, write_report
from tolktrain.benchmark.steps import (
    StepShape,
    largest_steps,
    pinned,
    sequences_of,
    timed_steps,
    with_global_batch,
)
from tolktrain.cluster.accelerators import Accelerator
from tolktrain.cluster.device_models import BOUND, LIKELY, SUSTAINED
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
from tolktrain.parallel.collectives import all_gather_objects
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.determinism import set_determinism
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.process import set_threads
from tolktrain.train.resolved import ResolvedSettings, choose_kernels
from tolktrain.train.utilization import Utilization

_FILE_WIDTH = 120  # of tables outside of a terminal


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    stage: str | None = None  # name of the stage whose step is timed; the last if None
    steps: int = 20  # that are timed
    warmup: int = 5  # steps before them
    accumulation: int = 1  # micro batches of a step on each data rank
    global_batch: int | None = None  # sequences of a step over all ranks, in place of `accumulation`
    speech_share: float = 0.46  # of the positions
    largest_batches: bool = False  # whether the peak memory includes steps of speech alone and of text alone
    memory_limit_gib: float | None = None  # of each rank
    against: tuple[str, ...] = ()  # further providers, of `AGAINST`
    compiles: bool = True  # whether the strongest plain form is compiled
    count: bool = False  # also bytes, FLOPs and launches of our step; on the null GPU nothing is timed
    device: str | None = None  # whose times are predicted for the counts; the present one if None
    calibration: Path | None = None  # measured rates for these predictions
    output: Path | None = None  # folder of the result; <run.dir>/bench-<run.name> if None


def bench(path: str | Path, overrides: Sequence[str], options: Options, command: Sequence[str]) -> Path:
    """Time our step and those of other providers on the same batches; print the result and write it.

    Weights are random and data is synthetic: neither the data sets nor the backbone's weights are read, and nothing is
    downloaded. Several processes (torchrun, srun) are measured in the layout of the configuration; every layout trains
    on the same sequences, so that the first losses of all layouts with the same global batch are equal up to rounding.

    Args:
        path: configuration.
        overrides: of the configuration.
        options: what is measured.
        command: for the result.

    Returns:
        The JSON file of the result; a Markdown file of the same name is written next to it. Rank 0 writes them.

    Raises:
        UserError: bad options or configuration, or our own step does not fit into memory. The rank that ran out leaves
            `OUT_OF_MEMORY` in the folder; with several processes, the launcher must end the others.
    """
    config = load_config(path, overrides)
    environment = ProcessEnvironment.detect()
    _check(config, options, environment.world_size)
    values = read_measured(options.calibration) if options.calibration else {}
    providers = [OURS, *(make_provider(name, options.compiles) for name in dict.fromkeys(options.against))]
    stage = _stage(config, options.stage)
    architecture = local_architecture(config.model, "bench")
    if "published" in options.against:
        check_published(architecture)
    folder = options.output or Path(config.run.dir) / f"bench-{config.run.name}"
    sequences = sequences_of(config, architecture, options.speech_share)
    parallel = config.parallel
    environment.export()
    set_determinism(config.train)
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    # All configurations are read before anything is measured.
    configs = [_one_step(load_config(path, [*overrides, *item.overrides]), options, layout) for item in providers]
    settings = [ResolvedSettings.of(own, architecture, layout) for own in configs]
    set_threads(layout, config.train.cpu_threads)
    if options.count:
        check_countable(config, layout.device.type)
    kind = device_of(options.device, device_name(layout)) if options.count else None
    console = Console(highlight=False, soft_wrap=True, quiet=layout.rank > 0)
    if not console.is_terminal:  # such as the log of a job
        console.width = max(console.width, _FILE_WIDTH)
    shape = StepShape(configs[0].train.global_batch_size, config.train.micro_batch_size, layout)
    steps = timed_steps(sequences, shape, options.warmup + options.steps)
    largest = largest_steps(sequences, shape, stage) if options.largest_batches else []
    if layout.device.type == "cuda":
        steps, largest = pinned(steps), pinned(largest)
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is to be known before, not after
    (folder / OUT_OF_MEMORY).unlink(missing_ok=True)
    report = _empty_report(configs[0], architecture, stage, options, layout, steps[options.warmup :], command)
    if options.memory_limit_gib is not None:
        limit_memory(options.memory_limit_gib, layout.device)
    for provider, own, resolved in zip(providers, configs, settings, strict=True):
        console.print(f"measuring {provider.name}: {provider.what}")
        rates = learning_rates_at(stage, 0, stage.tokens)
        only_counts = options.count and launch_counter() is not None  # on the null GPU
        setting = Setting(own, architecture, stage, layout, rates, resolved, draws_weights=not only_counts)
        counted = list[Operation]()
        measured = _measured(provider, setting, steps, largest, options, folder, counted)
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
    files = write_report(report, folder) if layout.rank == 0 else [folder / f"step-{report.name}.json"]
    for file in files:
        console.print(str(file))
    return files[0]


def _check(config: Config, options: Options, world_size: int) -> None:
    unknown = [name for name in options.against if name not in AGAINST]
    if unknown:
        raise UserError(f"--against {unknown[0]!r} is unknown; expected one or more of {', '.join(AGAINST)}, by commas")
    least = {"steps": 1, "warmup": 0, "accumulation": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            raise UserError(f"--{name} {getattr(options, name)} is too small; use {smallest} or more")
    if options.memory_limit_gib is not None and options.memory_limit_gib <= 0:
        raise UserError(f"--memory-limit {options.memory_limit_gib:g}: expected GiB of a rank, more than 0")
    if options.count and world_size > 1:
        raise UserError(f"--count counts one process, but there are {world_size}; start it without torchrun or srun")
    if options.against and world_size > 1:
        raise UserError(
            f"--against measures one process, but there are {world_size}; start it without torchrun or srun"
        )


def _one_step(config: Config, options: Options, layout: Layout) -> Config:
    """The configuration with the global batch that is measured."""
    size = options.global_batch
    if size is None:
        size = config.train.micro_batch_size * options.accumulation * layout.data_size
    return with_global_batch(config, size)


def _stage(config: Config, name: str | None) -> StageConfig:
    stages = {stage.name: stage for stage in config.train.stages}
    if name is None:
        return config.train.stages[-1]
    if name not in stages:
        raise UserError(f"--stage {name!r} is no stage of the configuration; it has {', '.join(stages)}")
    return stages[name]


def _empty_report(
    config: Config,
    architecture: Architecture,
    stage: StageConfig,
    options: Options,
    layout: Layout,
    timed: Sequence[Sequence[Batch]],
    command: Sequence[str],
) -> Report:
    """Collective: the counts are those of all data ranks."""
    own = StepCounts.of(batch for batches in timed for batch in batches)
    ranks = all_gather_objects((layout.tensor_rank == layout.pipeline_rank == 0, own))
    total = sum((counts for is_first, counts in ranks if is_first), StepCounts())
    counts = StepCounts(*(round(getattr(total, field.name) / len(timed)) for field in fields(total)))
    train = config.train
    return Report(
        name=config.run.name,
        stage=stage.name,
        trainable=stage.trainable,
        precision=train.precision,
        micro_batch_size=train.micro_batch_size,
        accumulation=train.global_batch_size // (train.micro_batch_size * layout.data_size),
        sequence_length=train.sequence_length,
        warmup=options.warmup,
        counts=counts,
        flops=step_flops(architecture, counts, stage.trainable),
        peak=Utilization.of(architecture, config, layout).peak,
        facts=facts(layout, choose_kernels(config, architecture, layout.device.type).description, command),
        entries=[],
        data_size=layout.data_size,
        world_size=layout.world_size,
        layout=layout.describe(),
        start_memory_gib=0.0 if layout.device.type == "cuda" else process_memory_gib(),
    )


def _measured(
    provider: Provider,
    setting: Setting,
    steps: Sequence[Sequence[Batch]],
    largest: Sequence[Sequence[Batch]],
    options: Options,
    folder: Path,
    counted: list[Operation],
) -> Measurement | None:
    """Measure a provider; None if this rank runs out of memory, or on the null GPU if it counts.

    The operations of our step are appended to `counted` if they are to be counted.
    """
    measured = None
    try:
        runner = provider.start(setting)
        try:
            if options.count and launch_counter() is not None:
                runner.step(steps[0])  # compiles
            else:
                measured = measure(runner, steps, options.warmup, setting.layout.device, largest)
            if options.count and isinstance(runner, EngineRunner) and provider is OURS:
                counted += runner.count(steps[-1])
            return measured
        finally:
            runner.close()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if provider is OURS:
            report_out_of_memory(folder, setting.layout, error)
        return measured


def _count(
    report: Report,
    operations: Sequence[Operation],
    device: Accelerator,
    values: Mapping[str, Any],
    measured: Measurement | None,
) -> Count:
    models = (BOUND, SUSTAINED.measured(values), LIKELY.measured(values))
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
