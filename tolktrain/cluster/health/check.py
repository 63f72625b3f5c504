"""The health check: measures, gathers, judges. Collective over all ranks."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tolktrain.cluster.health import diagnosis
from tolktrain.cluster.health.arithmetic import measure_product
from tolktrain.cluster.health.disk import Mark, look
from tolktrain.cluster.health.exchange import exchange_group, measure_exchange, read_clocks
from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.reports import ExchangeReport, RankReport, Space
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.watch.watchdog import collective_timeout
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import is_distributed, on_rank_zero
from tolktrain.parallel.layout import Layout

T = TypeVar("T")

logger = logging.getLogger(__name__)


def check_health(
    config: Config,
    layout: Layout,
    run_dir: Path,
    needed_space: Callable[[], Space],
    progress: Progress | None = None,
    probes: Probes | None = None,
) -> str:
    """Make sure that every rank's machine is fit for the run. Changes neither random states nor the run's folder.

    Args:
        config: the run; `health` has the limits.
        layout: this rank's place.
        run_dir: the run's folder, which exists.
        needed_space: how much space the run's checkpoints need; called on rank 0.
        progress: told what comes now.
        probes: what touches the machine.

    Returns:
        What was found, in a line for the terminal; empty if the check is switched off, and of one process on a CPU,
        whose figures tell nobody anything.

    Raises:
        UserError: a machine computes wrongly or slowly, versions differ, or the folder cannot take two checkpoints. On
            all ranks alike, naming node, rank and GPU.
    """
    if not config.health.enabled:
        logger.info("machines: not checked")
        return ""
    progress, probes = progress or Progress(), probes or Probes()
    started = time.perf_counter()
    progress.at("checking the machines")
    # As rank 0 sees it: what is decided from it must be the same everywhere.
    space = on_rank_zero(layout.rank, needed_space)
    reports = _reports(config, layout, run_dir, probes)
    findings = diagnosis.diagnose_ranks(reports, space, config.health)
    _act(findings, reports, layout.rank)
    exchanges: list[ExchangeReport] = []
    if is_distributed():
        # Only now: a GPU that has failed could not take part.
        progress.at("checking the network")
        exchanges = _exchanges(reports, layout, collective_timeout(config.parallel.hang_timeout_seconds), probes)
        findings = diagnosis.diagnose_network(exchanges, config.health, on_gpus=layout.device.type == "cuda")
        _act(findings, reports, layout.rank)
    if layout.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the metrics show training's
    line = _tell(reports, exchanges, space, layout.rank, time.perf_counter() - started)
    return line if is_distributed() or layout.device.type == "cuda" else ""


def _reports(config: Config, layout: Layout, run_dir: Path, probes: Probes) -> list[RankReport]:
    rank, node, mark = layout.rank, probes.node(), Mark(run_dir)
    try:
        gathered = _gathered((node, mark.leave() if rank == 0 else ""))
        is_first = [name for name, _ in gathered].index(node) == rank
        clock = read_clocks(probes.clock) if is_distributed() else ()
        dtype = torch.bfloat16 if layout.device.type == "cuda" and config.train.precision == "bf16" else torch.float32
        return _gathered(
            RankReport(
                rank=rank,
                node=node,
                device=probes.device(),
                product=measure_product(layout.device, dtype, probes.multiply),
                versions=probes.versions() if is_distributed() else {},
                clock=clock,
                folder=look(run_dir, gathered[0][1], rank, probes) if is_first else None,
            )
        )
    finally:
        if rank == 0:
            mark.remove()


def _exchanges(reports: list[RankReport], layout: Layout, timeout: timedelta, probes: Probes) -> list[ExchangeReport]:
    with exchange_group(layout.device, timeout) as group:
        return _gathered(measure_exchange([report.node for report in reports], layout.device, group, probes))


def _act(findings: list[diagnosis.Finding], reports: list[RankReport], rank: int) -> None:
    """Warn of what can be borne; refuse the rest."""
    if rank == 0:
        for finding in findings:
            if not finding.serious:
                logger.warning("%s", finding.text)
    serious = [finding for finding in findings if finding.serious]
    if serious:
        raise UserError(diagnosis.complaint(serious, [report.node for report in reports]))


def _tell(reports: list[RankReport], exchanges: list[ExchangeReport], space: Space, rank: int, seconds: float) -> str:
    line, own = diagnosis.summary(reports, exchanges, seconds), reports[rank]
    if rank == 0:
        logger.info("machines: %s", line)
        logger.info("machines: %s", diagnosis.details(reports, space))
    logger.info("this rank: %s, %s (%s)", own.node, own.device, own.device.name)
    return line


def _gathered(mine: T) -> list[T]:
    """Every rank's, in their order."""
    if not is_distributed():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
