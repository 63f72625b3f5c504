"""Rows of a parameter that ZeRO partitions between data ranks. The rank with the begin of a row writes the whole row.

ZeRO partitions flat memory, so a partition may end inside a row. The rest of that row, a few kilobytes, is on the next
rank or ranks, so only neighbouring ranks communicate. Gathering each parameter instead would need three collectives per
matrix over all data ranks, while training waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class RowEnd:
    """Elements of a flat parameter that are in one data rank's partition and written by another rank."""

    parameter: int  # its number
    start: int
    stop: int
    source: int  # the rank that has the elements
    target: int  # the rank that writes their row


def plan_row_ends(spans: Tensor, widths: Sequence[int], rank: int) -> list[RowEnd]:
    """The row ends that a data rank sends and receives, in the order of parameters and of their elements.

    Args:
        spans: [data ranks, parameters, 2], the elements (from, to) in each rank's partition; they are disjoint and
            complete.
        widths: elements of a row of each parameter.
        rank: the data rank.
    """
    found = []
    for parameter, width in enumerate(widths):
        start, stop = spans[rank, parameter].tolist()
        if start == stop:
            continue
        starts, stops = spans[:, parameter].unbind(dim=1)
        first, last = -(-start // width) * width, -(-stop // width) * width
        if start < first:
            before = first - width  # where the row begins
            target = torch.nonzero((starts <= before) & (before < stops)).item()
            found.append(RowEnd(parameter, start, min(stop, first), rank, int(target)))
        if first < last:
            sources = torch.nonzero((starts < last) & (stops > stop) & (starts < stops)).flatten().tolist()
            for source in sorted(sources, key=lambda source: int(starts[source])):
                found.append(RowEnd(parameter, int(starts[source]), min(int(stops[source]), last), source, rank))
    return found


def exchange(
    outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[int]], group: dist.ProcessGroup
) -> dict[int, list[Tensor]]:
    """Exchange flat float32 tensors on the host with other ranks, with one message per rank and direction.

    Args:
        outgoing: tensors by receiving rank.
        incoming: sizes by sending rank.
        group: of these ranks.

    Returns:
        Received tensors by rank.
    """
    given = {rank: torch.cat([part.float() for part in parts]).cpu() for rank, parts in outgoing.items()}
    got = {rank: torch.empty(sum(sizes)) for rank, sizes in incoming.items()}
    requests = [dist.isend(part, group=group, group_dst=rank) for rank, part in given.items()]
    requests += [dist.irecv(part, group=group, group_src=rank) for rank, part in got.items()]
    for request in requests:
        assert request is not None
        request.wait()
    return {rank: list(part.split(list(incoming[rank]))) for rank, part in got.items()}
