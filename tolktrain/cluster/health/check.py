"""The health check: measures every machine, gathers the reports and diagnoses them. Collective over all ranks."""

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
    """Check that every rank's machine is fit for the run. Changes neither random states nor the run directory.

    Args:
        config: of the run; `health` has the limits.
        layout: of this rank.
        run_dir: the run directory, which exists.
        needed_space: returns the space that the run's checkpoints need; called on rank 0.
        progress: where the parts of the check are reported.
        probes: the functions that access the machine.

    Returns:
        The results in a line for the terminal; empty if the check is switched off, and for a single process on a CPU.

    Raises:
        UserError: a machine computes wrongly or slowly, versions differ, or the run directory has no room for two
            checkpoints. The same on all ranks; the message names node, rank and GPU.
    """
    if not config.health.enabled:
        logger.info("machines: not checked")
        return ""
    progress, probes = progress or Progress(), probes or Probes()
    started = time.perf_counter()
    progress.at("checking the machines")
    # Only rank 0 looks: the decision that depends on it must be the same on all ranks.
    space = on_rank_zero(layout.rank, needed_space)
    reports = _reports(config, layout, run_dir, probes)
    findings = diagnosis.diagnose_ranks(reports, space, config.health)
    _act(findings, reports, layout.rank)
    exchanges: list[ExchangeReport] = []
    if is_distributed():
        # After the first diagnosis: a failed GPU could not take part in collectives.
        progress.at("checking the network")
        exchanges = _exchanges(reports, layout, collective_timeout(config.parallel.hang_timeout_seconds), probes)
        findings = diagnosis.diagnose_network(exchanges, config.health, on_gpus=layout.device.type == "cuda")
        _act(findings, reports, layout.rank)
    if layout.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the metrics show the peak of training
    line = _log_summary(reports, exchanges, space, layout.rank, time.perf_counter() - started)
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
    """Warn of findings that are not serious; raise UserError for the others."""
    if rank == 0:
        for finding in findings:
            if not finding.serious:
                logger.warning("%s", finding.text)
    serious = [finding for finding in findings if finding.serious]
    if serious:
        raise UserError(diagnosis.complaint(serious, [report.node for report in reports]))


def _log_summary(
    reports: list[RankReport], exchanges: list[ExchangeReport], space: Space, rank: int, seconds: float
) -> str:
    line, own = diagnosis.summary(reports, exchanges, seconds), reports[rank]
    if rank == 0:
        logger.info("machines: %s", line)
        logger.info("machines: %s", diagnosis.details(reports, space))
    logger.info("this rank: %s, %s (%s)", own.node, own.device, own.device.name)
    return line


def _gathered(mine: T) -> list[T]:
    """The values of all ranks, in the order of the ranks."""
    if not is_distributed():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
