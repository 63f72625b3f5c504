"""Rows of a parameter that ZeRO cuts between data ranks. Each is written whole, by the rank that has its beginning.

ZeRO cuts flat memory, wherever that is in a row. What a rank lacks of its last row is with the next rank, or the next
ones, and a few kilobytes: those ranks alone talk to each other. To gather each parameter instead would take as many
collective operations as there are matrices, times three, over all data ranks, while training waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class RowEnd:
    """Elements of a flat parameter that one data rank keeps and another one writes."""

    parameter: int  # its number
    start: int
    stop: int
    source: int  # has them
    target: int  # writes the row that they end


def plan_row_ends(spans: Tensor, widths: Sequence[int], rank: int) -> list[RowEnd]:
    """What a data rank gets and gives, in the order of parameters and of their elements.

    Args:
        spans: [data ranks, parameters, 2], the elements (from, to) that each keeps; together they are all, once.
        widths: elements of a row of each parameter.
        rank: of whom.
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
    """Give flat tensors to other ranks and get theirs, float32, on the host; one message for each rank and direction.

    Args:
        outgoing: by the rank that they go to.
        incoming: sizes, by the rank that they come from.
        group: of these ranks.

    Returns:
        What has come, by rank.
    """
    given = {rank: torch.cat([part.float() for part in parts]).cpu() for rank, parts in outgoing.items()}
    got = {rank: torch.empty(sum(sizes)) for rank, sizes in incoming.items()}
    requests = [dist.isend(part, group=group, group_dst=rank) for rank, part in given.items()]
    requests += [dist.irecv(part, group=group, group_src=rank) for rank, part in got.items()]
    for request in requests:
        assert request is not None
        request.wait()
    return {rank: list(part.split(list(incoming[rank]))) for rank, part in got.items()}
