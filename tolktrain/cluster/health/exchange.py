"""Collective measurements of the ranks: their clocks and the network between them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.reports import ExchangeReport
from tolktrain.cluster.health.schedule import partners, ranks_by_node

_CLOCK_ROUNDS = 5
_REPETITIONS = 5
_SWAPS = 3  # exchanges of a pair; the first one opens the connection


@dataclass(frozen=True)
class Sizes:
    """Numbers of float32 elements that are sent."""

    all_reduce: int
    pair: int


GPU = Sizes(all_reduce=32 * 2**20, pair=16 * 2**20)
CPU = Sizes(all_reduce=2**18, pair=2**18)
_HOST, _COMPARED_ON_HOST = torch.device("cpu"), 2**20  # elements
_DIFFERENT = 241  # distinct numbers that ranks add


def read_clocks(clock: Callable[[], float]) -> tuple[tuple[float, float], ...]:
    """This rank's time before and after each of several exchanges with all others.

    No rank leaves an exchange before the last rank has entered it. This bounds the difference of any two clocks.
    """
    number = torch.zeros(1)
    numbers = [torch.zeros(1) for _ in range(dist.get_world_size())]
    readings = []
    for _ in range(_CLOCK_ROUNDS):
        before = clock()
        dist.all_gather(numbers, number)
        readings.append((before, clock()))
    return tuple(readings)


@contextmanager
def exchange_group(device: torch.device, timeout: timedelta) -> Iterator[dist.ProcessGroup | None]:
    """A group of all ranks whose GPU buffers are released at the end. None means the default group."""
    if device.type != "cuda":
        yield None
        return
    group = dist.new_group(backend="nccl", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    # Not in a `finally`: after a failed exchange, cleaning up could wait for ranks that have ended.
    yield group
    torch.cuda.synchronize(device)
    dist.destroy_process_group(group)
    torch.cuda.empty_cache()


def measure_exchange(
    nodes: Sequence[str], device: torch.device, group: dist.ProcessGroup | None, probes: Probes
) -> ExchangeReport:
    """Measure an all-reduce over all ranks and, between several nodes, exchanges of pairs of nodes in rounds.

    Args:
        nodes: of each rank.
        device: of this rank.
        group: of all ranks.
        probes: of this rank.
    """
    sizes, rank = GPU if device.type == "cuda" else CPU, dist.get_rank()
    seconds, num_wrong = _all_reduce(sizes.all_reduce, device, group)
    ranks = ranks_by_node(nodes)
    rates: list[float | None] = []
    if len(ranks) > 1:
        for partner in partners(rank, ranks):
            _barrier(device, group)
            rates.append(None if partner is None else _pair(partner, sizes.pair, device, group, probes))
    return ExchangeReport(rank, nodes[rank], sizes.all_reduce * 4, seconds, num_wrong, tuple(rates))


def _all_reduce(size: int, device: torch.device, group: dist.ProcessGroup | None) -> tuple[tuple[float, ...], int]:
    """Seconds of each repetition, and the number of wrong elements of the sums."""
    world_size = dist.get_world_size()
    own, expected = own_numbers(size, dist.get_rank(), device), summed_numbers(size, world_size, device)
    seconds, num_wrong = [], torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(1 + _REPETITIONS):
        values = own.clone()
        _barrier(device, group)
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
        num_wrong += (values != expected).sum()
    # A device that computes nothing may find everything equal.
    seen = values[:_COMPARED_ON_HOST].cpu() != summed_numbers(len(values[:_COMPARED_ON_HOST]), world_size, _HOST)
    return tuple(seconds[1:]), max(int(num_wrong), int(seen.sum()))  # the first one opens connections


def own_numbers(size: int, rank: int, device: torch.device) -> Tensor:
    """The integers that a rank adds. Sums over up to 2^17 ranks are below 2^24, so float32 holds them exactly, in any
    order of summation."""
    return torch.arange(size, device=device, dtype=torch.float32) % 7 + rank % _DIFFERENT


def summed_numbers(size: int, world_size: int, device: torch.device) -> Tensor:
    """The sum of all ranks' `own_numbers`."""
    pattern = torch.arange(size, device=device, dtype=torch.float32) % 7
    return pattern * world_size + sum(rank % _DIFFERENT for rank in range(world_size))


def _pair(partner: int, size: int, device: torch.device, group: dist.ProcessGroup | None, probes: Probes) -> float:
    """Bytes per second in each direction, while both directions are used."""
    ours = torch.zeros(size, device=device)
    theirs = torch.empty_like(ours)
    best = float("inf")
    for attempt in range(_SWAPS):
        operations = [
            dist.P2POp(dist.isend, ours, partner, group=group),
            dist.P2POp(dist.irecv, theirs, partner, group=group),
        ]
        _wait_for(device)
        started = time.perf_counter()
        probes.swap(operations)
        _wait_for(device)
        if attempt:
            best = min(best, time.perf_counter() - started)
    return 4 * size / best


def _barrier(device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Wait for all ranks, so that no rank's time includes waiting for a late rank."""
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    _wait_for(device)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
