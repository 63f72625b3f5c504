"""Diagnoses the ranks' reports: broken or slow machines, and differences between machines. Pure functions."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import median_high, median_low
from typing import TypeVar

from tolktrain.cluster.accelerators import accelerator_of
from tolktrain.cluster.health.formatting import bytes_text, flops, nodes_of, ranks_text, span, where
from tolktrain.cluster.health.reports import ExchangeReport, RankReport, Space
from tolktrain.cluster.health.schedule import ranks_by_node
from tolktrain.config.health import HealthConfig

Key = TypeVar("Key")

_IMPOSSIBLE = 1.2  # of the peak; clocks may be a little above those of the data sheet


@dataclass(frozen=True)
class Finding:
    """A problem of one or more machines."""

    text: str
    nodes: tuple[str, ...] = ()  # without these the job could start
    serious: bool = True  # training must not start


def diagnose_ranks(reports: Sequence[RankReport], space: Space, settings: HealthConfig) -> list[Finding]:
    """Problems of single machines, and differences between machines. `reports` has one entry per rank, in order."""
    return [
        *wrong_products(reports),
        *impossible_rates(reports),
        *slow_devices(reports, settings.slow_fraction),
        *different_devices(reports),
        *different_versions(reports),
        *folder_faults(reports, space),
        *clock_differences(reports, settings.clock_difference_seconds),
    ]


def diagnose_network(exchanges: Sequence[ExchangeReport], settings: HealthConfig, on_gpus: bool) -> list[Finding]:
    """Problems of the network. `exchanges` has one entry per rank, in order."""
    return [*wrong_sums(exchanges), *slow_nodes(exchanges, settings.slow_network_fraction, on_gpus)]


def wrong_products(reports: Sequence[RankReport]) -> list[Finding]:
    """Devices that compute wrongly or not at all."""
    return [
        Finding(f"{report.node}, rank {report.rank} ({report.device}) {report.product.fault}", (report.node,))
        for report in reports
        if report.product.fault
    ]


def impossible_rates(reports: Sequence[RankReport]) -> list[Finding]:
    """GPUs that seem faster than their data sheet allows: they did not do all of the work, or did not wait for it."""
    findings = []
    for report in reports:
        kind, rate = accelerator_of(report.device.name), report.product.flops_per_second
        if report.device.kind == "cuda" and kind is not None and rate > _IMPOSSIBLE * kind.peak_flops:
            findings.append(
                Finding(
                    f"{report.node}, rank {report.rank} ({report.device}) seems to multiply matrices at {flops(rate)},"
                    f" but the peak of {report.device.name} is {flops(kind.peak_flops)}: its driver does not wait for"
                    " the device, or another device answers under this name",
                    (report.node,),
                )
            )
    return findings


def slow_devices(reports: Sequence[RankReport], fraction: float) -> list[Finding]:
    """Devices that are slower than most devices of their kind.

    The median is the upper of two middle values, so that a slow one of two nodes is compared with the other node.
    """
    findings = []
    for (kind, name), group in _grouped(reports, lambda report: (report.device.kind, report.device.name)).items():
        healthy = [report for report in group if not report.product.fault]
        if len(healthy) < 2:
            continue
        median = median_high([report.product.flops_per_second for report in healthy])
        # Ranks on CPUs share cores with each other and with other programs.
        limit = fraction * median * (1.0 if kind == "cuda" else 0.5)
        findings += [
            Finding(
                f"{report.node}, rank {report.rank} ({report.device}) multiplies matrices at"
                f" {flops(report.product.flops_per_second)}, {report.product.flops_per_second / median:.2f} of the"
                f" {flops(median)} that most {name} reach",
                (report.node,),
                serious=kind == "cuda",
            )
            for report in healthy
            if report.product.flops_per_second < limit
        ]
    return findings


def different_devices(reports: Sequence[RankReport]) -> list[Finding]:
    """GPUs of several kinds: allowed, but the slowest kind determines the speed."""
    kinds = _grouped(reports, lambda report: report.device.name)
    if len(kinds) < 2 or any(report.device.kind == "cpu" for report in reports):
        return []
    listed = "; ".join(f"{name} on {where(group)}" for name, group in kinds.items())
    return [Finding(f"the GPUs differ, and the slowest sets the pace: {listed}", serious=False)]


def different_versions(reports: Sequence[RankReport]) -> list[Finding]:
    """Ranks whose code or libraries differ from those of most ranks."""
    findings = []
    for name in dict.fromkeys(name for report in reports for name in report.versions):
        values = _grouped(reports, lambda report: report.versions.get(name, "absent"))  # noqa: B023 - used at once
        # If counts are equal, the lowest rank's version is taken, so that all ranks raise the same message.
        usual = max(values, key=lambda value: (len(values[value]), -values[value][0].rank))  # noqa: B023
        for value, group in values.items():
            if value != usual:
                findings.append(
                    Finding(
                        f"{name}: {value} on {where(group)}, but {usual} on {where(values[usual])}", nodes_of(group)
                    )
                )
    return findings


def folder_faults(reports: Sequence[RankReport], space: Space) -> list[Finding]:
    """Why checkpoints cannot be written to the run directory. Leaving out a node does not help, so none is named."""
    seen = [(report, report.folder) for report in reports if report.folder is not None]
    findings = [
        Finding(
            f"run.dir: {report.node} (rank {report.rank}) cannot write to {space.folder}: {folder.fault}; make it"
            " writable there, or choose another run.dir"
        )
        for report, folder in seen
        if folder.fault
    ]
    findings += [
        Finding(
            f"run.dir: {space.folder} on {report.node} is not the folder that {reports[0].node} has under this name;"
            " choose a run.dir on a file system that all nodes share"
        )
        for report, folder in seen
        if not folder.fault and not folder.is_rank_zeros
    ]
    if findings:
        return findings
    for report, folder in sorted(seen, key=lambda pair: pair[1].free_bytes)[:1]:
        findings += _lack_of_bytes(space, report.node, folder.free_bytes)
        findings += _lack_of_files(space, report.node, folder.free_files)
    return findings


def clock_differences(reports: Sequence[RankReport], limit: float) -> list[Finding]:
    """Nodes whose clock certainly differs by more than `limit` seconds from the median node's."""
    firsts = first_of_nodes(reports)
    if len(firsts) < 2 or not firsts[0].clock:
        return []
    reference = median_clock(firsts)
    findings = []
    for report in firsts:
        low, high = clock_offset(report.clock, reference.clock)
        if low > limit or high < -limit:
            middle, error = (low + high) / 2, abs(high - low) / 2
            findings.append(
                Finding(
                    f"the clock of {report.node} is {abs(middle):.3g} s (+-{error:.2g})"
                    f" {'ahead of' if middle > 0 else 'behind'} that of {reference.node}: logs and leases become"
                    " confusing; have it set by NTP (chronyc tracking)",
                    serious=False,
                )
            )
    return findings


def clock_offset(ours: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Bounds of how many seconds a clock is ahead of another one, from readings around the same exchanges.

    No rank leaves an exchange before all ranks have entered it. So this rank entered before the other one left, and
    the other one entered before this rank left.
    """
    pairs = list(zip(ours, reference, strict=True))
    low = max(before - their_after for (before, _), (_, their_after) in pairs)
    high = min(after - their_before for (_, after), (their_before, _) in pairs)
    return low, high


def median_clock(reports: Sequence[RankReport]) -> RankReport:
    """The report with the median clock. With the first one as reference, a wrong first clock would blame all others."""
    middles = [sum(clock_offset(report.clock, reports[0].clock)) for report in reports]
    return reports[middles.index(median_low(middles))]


def wrong_sums(exchanges: Sequence[ExchangeReport]) -> list[Finding]:
    """Ranks on which a sum over all ranks was wrong."""
    wrong = [report for report in exchanges if report.num_wrong_sums]
    if not wrong:
        return []
    listed = ranks_text([report.rank for report in wrong])
    return [
        Finding(
            f"an all-reduce of known numbers over all ranks gave wrong sums on {listed}"
            f" ({max(report.num_wrong_sums for report in wrong):,} elements); the network, a link between GPUs or a"
            " GPU's memory is broken: run with half of the nodes to find which"
        )
    ]


def slow_nodes(exchanges: Sequence[ExchangeReport], fraction: float, on_gpus: bool) -> list[Finding]:
    """Nodes that are slow with each of their partners. With only two nodes, the slow one cannot be determined."""
    rates = node_rates(exchanges)
    if len(rates) < 3:
        return []
    median = median_high(rates.values())
    ranks = ranks_by_node([report.node for report in exchanges])
    return [
        Finding(
            f"{node} ({ranks_text(ranks[node])}) exchanges {bytes_text(rate)}/s with other nodes at best,"
            f" {rate / median:.2f} of the {bytes_text(median)}/s that most reach",
            (node,),
            serious=on_gpus,
        )
        for node, rate in rates.items()
        if rate < fraction * median
    ]


def node_rates(exchanges: Sequence[ExchangeReport]) -> dict[str, float]:
    """Bytes per second that each node sent to its fastest partner, while it received as many."""
    rates = {}
    for node, ranks in ranks_by_node([report.node for report in exchanges]).items():
        rounds = zip(*(exchanges[rank].pair_bytes_per_second for rank in ranks), strict=True)
        sums = [sum(rate for rate in rates_of_ranks if rate is not None) for rates_of_ranks in rounds]
        if any(sums):
            rates[node] = max(sums)
    return rates


def all_reduce_rate(exchanges: Sequence[ExchangeReport]) -> float:
    """Bytes per second that each rank sends and receives during an all-reduce (NCCL's "bus bandwidth")."""
    seconds = min(map(max, zip(*(report.all_reduce_seconds for report in exchanges), strict=True)))
    num = len(exchanges)
    return 2 * (num - 1) / num * exchanges[0].all_reduce_bytes / seconds


def complaint(findings: Sequence[Finding], all_nodes: Collection[str]) -> str:
    """The error message if training must not start."""
    texts = [finding.text for finding in findings]
    message = texts[0] if len(texts) == 1 else "the machines are not fit for this run:\n  " + "\n  ".join(texts)
    nodes = list(dict.fromkeys(node for finding in findings for node in finding.nodes))
    if nodes and len(nodes) < len(set(all_nodes)):
        message += f"\nleave out {', '.join(nodes)} (sbatch --exclude={','.join(nodes)}) and have it repaired"
        return f"{message}, or start with --skip-health-check"
    return f"{message}\n--skip-health-check starts without this check"


def summary(reports: Sequence[RankReport], exchanges: Sequence[ExchangeReport], seconds: float) -> str:
    """One line: "4 ranks on 2 nodes, checked in 0.14 s: products at 31-33 GFLOP/s, ..."."""
    num_nodes = len(first_of_nodes(reports))
    parts = [f"products at {span([report.product.flops_per_second for report in reports], flops)}"]
    if exchanges:
        parts.append(f"all-reduce {bytes_text(all_reduce_rate(exchanges))}/s")
    rates = list(node_rates(exchanges).values())
    parts += [f"between nodes {span(rates, bytes_text)}/s"] if rates else []
    free = [report.folder.free_bytes for report in reports if report.folder is not None]
    parts += [f"{bytes_text(min(free))} free"] if free else []
    ranks = f"{len(reports)} rank{'s' * (len(reports) > 1)}"
    on_nodes = f"{ranks} on {num_nodes} nodes" if num_nodes > 1 else ranks
    return f"{on_nodes}, checked in {seconds:.2f} s: {', '.join(parts)}"


def details(reports: Sequence[RankReport], space: Space) -> str:
    """A line for the log: versions, clocks, and the size of a checkpoint."""
    versions = ", ".join(f"{name} {value}" for name, value in reports[0].versions.items())
    firsts = first_of_nodes(reports)
    clocks = ""
    if len(firsts) > 1 and firsts[0].clock:
        reference = median_clock(firsts)
        widest = max(max(map(abs, clock_offset(report.clock, reference.clock))) for report in firsts)
        clocks = f"clocks within {widest:.2g} s; "
    checkpoint = f"a checkpoint takes at most {bytes_text(space.checkpoint_bytes)}"
    return f"{clocks}{checkpoint}" + (f"; on all ranks: {versions}" if versions else "")


def first_of_nodes(reports: Sequence[RankReport]) -> list[RankReport]:
    """The report of each node's first rank."""
    return [reports[ranks[0]] for ranks in ranks_by_node([report.node for report in reports]).values()]


def _lack_of_bytes(space: Space, node: str, free_bytes: int) -> list[Finding]:
    available, needed = free_bytes + space.reclaimed_bytes, space.num_checkpoints * space.checkpoint_bytes
    if available >= needed:
        return []
    several = space.num_checkpoints > 1
    what = "two checkpoints" if several else "one more checkpoint"
    remedy = "free some, or choose another run.dir"
    if several and space.num_existing:
        remedy += f"; with checkpoint.keep_last={space.num_existing}, as many as are there, one more is enough"
    elif space.num_existing > 1:
        remedy += f"; of the {space.num_existing} checkpoints that are there the oldest may be deleted"
    return [
        Finding(
            f"run.dir: {space.folder} has {bytes_text(available)} free (seen from {node}), but {what} of"
            f" {bytes_text(space.checkpoint_bytes)}{' each need' if several else ' needs'}"
            f" {bytes_text(needed)}; {remedy}"
        )
    ]


def _lack_of_files(space: Space, node: str, free_files: int | None) -> list[Finding]:
    if free_files is None or free_files >= space.num_files:
        return []
    return [
        Finding(
            f"run.dir: the file system of {space.folder} has room for {free_files:,} more files (seen from {node}), but"
            f" {space.num_files:,} are needed; delete some (df -i), or choose another run.dir"
        )
    ]


def _grouped(reports: Sequence[RankReport], key: Callable[[RankReport], Key]) -> dict[Key, list[RankReport]]:
    groups: dict[Key, list[RankReport]] = {}
    for report in reports:
        groups.setdefault(key(report), []).append(report)
    return groups
