"""Rows that are cut between data ranks come together at one of them, and few ranks need to talk for that."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.train.deepspeed.row_ends import RowEnd, plan_row_ends


def put_together(spans: torch.Tensor, flats: Sequence[torch.Tensor], widths: Sequence[int]) -> None:
    """Play all ranks: each keeps its span and gets what the plan says; its rows must then be whole."""
    plans = [plan_row_ends(spans, widths, rank) for rank in range(len(spans))]
    sent = Counter(end for rank, plan in enumerate(plans) for end in plan if end.source == rank)
    received = Counter(end for rank, plan in enumerate(plans) for end in plan if end.target == rank)
    assert sent == received and all(count == 1 for count in sent.values())
    for number, (flat, width) in enumerate(zip(flats, widths, strict=True)):
        written = torch.zeros(len(flat) // width, dtype=torch.int64)
        for rank, plan in enumerate(plans):
            start, stop = spans[rank, number].tolist()
            first, last = -(-start // width), -(-stop // width)
            ends = [end for end in plan if end.parameter == number and end.target == rank]
            if first < last:
                rows = torch.cat([flat[first * width : stop], *(flat[end.start : end.stop] for end in ends)])
                assert torch.equal(rows, flat[first * width : last * width])
            else:
                assert not ends
            written[first:last] += 1
        assert bool((written == 1).all()), "every row is written once"


def spans_of(cuts: Sequence[int], sizes: Sequence[int], order: Sequence[int] | None = None) -> torch.Tensor:
    """Parameters laid end to end and cut, as ZeRO 1 does; the parts go to ranks in some order."""
    edges = [0, *sorted(cuts), sum(sizes)]
    spans = torch.zeros(len(edges) - 1, len(sizes), 2, dtype=torch.int64)
    position = 0
    for number, size in enumerate(sizes):
        for part in range(len(edges) - 1):
            begin, end = max(edges[part] - position, 0), min(edges[part + 1] - position, size)
            if begin < end:
                spans[part if order is None else order[part], number] = torch.tensor([begin, end])
        position += size
    return spans


@given(st.data())
def test_every_row_is_whole_wherever_memory_is_cut(data: st.DataObject) -> None:
    """Rows wider than a rank's part come from several; ranks without anything are left alone."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=5))
    sizes, widths = [rows * width for rows, width in shapes], [width for _, width in shapes]
    cuts = data.draw(st.lists(st.integers(0, sum(sizes)), max_size=11))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    put_together(spans_of(cuts, sizes, order), [torch.arange(size) for size in sizes], widths)


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=4))
def test_so_it_is_where_each_parameter_is_cut(ranks: int, shapes: list[tuple[int, int]]) -> None:
    """As ZeRO 3 does: equal parts, the last ones shorter or empty."""
    sizes = [rows * width for rows, width in shapes]
    spans = torch.zeros(ranks, len(sizes), 2, dtype=torch.int64)
    for number, size in enumerate(sizes):
        part = -(-size // ranks)
        for rank in range(ranks):
            spans[rank, number] = torch.tensor([min(rank * part, size), min((rank + 1) * part, size)])
    put_together(spans, [torch.arange(size) for size in sizes], [width for _, width in shapes])


def test_each_rank_talks_to_its_neighbours_however_many_there_are(
    growth_exponent: Callable[[Mapping[int, float]], float],
) -> None:
    """253 matrices under ZeRO 1, as the 2B model has. To gather what is cut would be up to 759 gathers over all."""
    sizes, widths = [2048 * 2048] * 253, [2048] * 253
    messages: dict[int, float] = {}
    for ranks in (2, 8, 64, 1024, 8192):
        cuts = [sum(sizes) * rank // ranks + 7 for rank in range(1, ranks)]
        spans = spans_of_few(cuts, sizes)
        sample = sorted({0, 1, ranks // 3, ranks - 1})
        plans = {rank: plan_row_ends(spans, widths, rank) for rank in sample}
        messages[ranks] = max(map(partners, plans.values()))
        assert all(abs(end.source - end.target) == 1 for plan in plans.values() for end in plan)
        assert max(len(plan) for plan in plans.values()) <= 2
    assert growth_exponent(messages) < 0.1 and max(messages.values()) <= 2, messages


def partners(plan: Sequence[RowEnd]) -> int:
    """Messages in both directions."""
    return len({(end.source, end.target) for end in plan})


def spans_of_few(cuts: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """`spans_of` in order, for many ranks."""
    edges = torch.tensor([0, *cuts, sum(sizes)])
    positions = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    begins = (edges[:-1, None] - positions).clamp(min=0)
    ends = torch.minimum(edges[1:, None] - positions, torch.tensor(sizes))
    kept = begins < ends
    return torch.stack([begins * kept, ends * kept], dim=2)
