"""The order of the records in an epoch: exactly that of mosaicml-streaming, for a part of the canonical nodes.

The library computes the whole epoch on every node, in Python lists and 64-bit arrays. Here, a node computes the rows of
the canonical nodes that it reads; for the others, it only draws the preceding random numbers. Numbers of records take
32 bits if they fit. The library calls this sampling method "balanced" and this shuffle "py1e".
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Ids = NDArray[np.signedinteger[Any]]

_SMALL_REST = 1 << 16  # up to so many omitted records of an epoch are found one by one instead of by a full shuffle
_SORTED_TOGETHER = 1 << 14  # positions that are sorted at a time, so that they stay in a core's cache


def id_type(total: int) -> np.dtype[Any]:
    """Smallest integer type for the numbers of `total` records."""
    return np.dtype(np.int32 if total < 1 << 31 else np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """Everything on which the order of an epoch depends, except the number of the epoch.

    Records are numbered through all shards of all sets. In the flat order of an epoch, record i is entry
    i // num_canonical_nodes of the row of canonical node i % num_canonical_nodes.
    """

    shard_sizes: tuple[Numbers, ...]  # of each set: records of each shard
    counts: tuple[int, ...]  # of each set: records in an epoch
    num_canonical_nodes: int
    seed: int
    block_size: int

    def __post_init__(self) -> None:
        assert sum(self.counts) % self.num_canonical_nodes == 0, "the library would repeat records"

    @property
    def row_length(self) -> int:
        """Records of one canonical node in an epoch."""
        return sum(self.counts) // self.num_canonical_nodes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest integer type for a record's number."""
        return id_type(sum(int(sizes.sum()) for sizes in self.shard_sizes))

    def rows(self, epoch: int, nodes: Sequence[int]) -> Ids:
        """Numbers of the records of some canonical nodes in an epoch, [nodes, row_length], in the order of `nodes`."""
        result = np.empty((len(nodes), self.row_length), self.dtype)
        self.write_rows(epoch, nodes, result)
        return result

    def write_rows(self, epoch: int, nodes: Sequence[int], out: Ids) -> None:
        """Write the same into the array `out`."""
        units = self._units(epoch)
        spans = self._spans(units)
        rng = np.random.default_rng(self.seed + epoch)
        for span in spans:
            rng.shuffle(span)
        wanted = [spans[node] for node in nodes]
        chosen = self._chosen(epoch, units, np.unique(np.concatenate([span["unit"] for span in wanted])))
        place = {node: number for number, node in enumerate(nodes)}
        scratch = np.empty(int(units.size.max()), np.int8), np.empty(int(units.size.max()))
        for node, span in enumerate(spans[: max(nodes) + 1]):
            if node in place:
                self._write_row(rng, span, units, chosen, out[place[node]])
            else:
                self._draw_row(rng, span["size"].tolist(), *scratch)

    def _units(self, epoch: int) -> "_Units":
        """All whole and partial repeats of shards that make the epoch."""
        seed = self.seed + epoch
        sizes = np.concatenate(self.shard_sizes)
        chosen = np.concatenate(
            [_sample(part, count, seed) for part, count in zip(self.shard_sizes, self.counts, strict=True)]
        )
        shards = np.flatnonzero(chosen)
        whole, rest = np.divmod(chosen[shards], sizes[shards])
        repeats = whole + (rest > 0)
        shard = np.repeat(shards, repeats)
        size = sizes[shard]
        last = np.cumsum(repeats) - 1
        partial = rest > 0
        size[last[partial]] = rest[partial]
        return _Units(shard, size, sizes, np.cumsum(sizes) - sizes)

    def _spans(self, units: "_Units") -> list[NDArray[Any]]:
        """The parts of units of each canonical node, in the order that is fixed for a run."""
        order = np.arange(len(units.size))
        np.random.default_rng(self.seed).shuffle(order)
        ends = np.cumsum(units.size[order])
        begins = ends - units.size[order]
        total, count = int(ends[-1]), self.num_canonical_nodes
        bounds = np.array([total * node // count for node in range(count + 1)])
        cuts = np.union1d(begins, bounds)  # of the line on which the units lie in that order
        parts = np.empty(len(cuts) - 1, [("unit", np.int64), ("begin", np.int64), ("size", np.int64)])
        place = np.searchsorted(begins, cuts[:-1], side="right") - 1
        parts["unit"], parts["begin"], parts["size"] = order[place], cuts[:-1] - begins[place], np.diff(cuts)
        return np.split(parts, np.searchsorted(cuts, bounds[1:-1]))

    def _chosen(self, epoch: int, units: "_Units", wanted: Numbers) -> dict[int, Ids]:
        """The chosen records inside the shard, for each wanted unit that is a part of its shard."""
        rng = np.random.default_rng(self.seed + epoch)
        shard_sizes = units.shard_sizes[units.shard]
        partial = np.flatnonzero(units.size < shard_sizes)
        if not np.isin(partial, wanted).any():
            return {}
        last = int(partial[np.isin(partial, wanted)][-1])
        partial = partial[partial <= last]
        keep = np.isin(partial, wanted)
        found: dict[int, Ids] = {}
        for unit, population, count, kept in zip(
            partial.tolist(), shard_sizes[partial].tolist(), units.size[partial].tolist(), keep.tolist(), strict=True
        ):
            choice = rng.choice(population, count, False)
            if kept:
                narrow = choice.astype(np.uint16 if population <= 1 << 16 else np.uint32)
                narrow.sort()
                found[unit] = narrow
        return found

    def _write_row(
        self, rng: np.random.Generator, span: NDArray[Any], units: "_Units", chosen: dict[int, Ids], row: Ids
    ) -> None:
        """Order of one canonical node: each part is shuffled, and its records are then moved by a random distance."""
        ids = np.empty_like(row)
        firsts = units.shard_begins[units.shard[span["unit"]]].tolist()
        end = 0
        columns = (span[name].tolist() for name in ("unit", "begin", "size"))
        for unit, begin, size, first in zip(*columns, firsts, strict=True):
            part = ids[end : end + size]
            if unit in chosen:
                np.add(chosen[unit][begin : begin + size], first, out=part, casting="unsafe", dtype=np.int64)
            else:
                part[:] = np.arange(first + begin, first + begin + size)
            rng.shuffle(part)
            end += size
        positions = np.arange(len(row), dtype=np.float64)
        low, high = int(0.75 * self.block_size), int(1.25 * self.block_size)
        begin = 0
        for size in span["size"].tolist():
            cutoff = max((int(rng.integers(low, high)) - size) / 2, 0)
            lower, upper = max(-cutoff, -begin), min(cutoff, len(row) - begin - size)
            positions[begin : begin + size] += rng.uniform(lower, upper, size)
            begin += size
        _take_sorted(ids, positions, high / 2, row)

    def _draw_row(
        self, rng: np.random.Generator, sizes: Sequence[int], numbers: NDArray[Any], fractions: NDArray[Any]
    ) -> None:
        """Draw the same random numbers as `_write_row`."""
        for size in sizes:
            rng.shuffle(numbers[:size])
        low, high = int(0.75 * self.block_size), int(1.25 * self.block_size)
        for size in sizes:
            rng.integers(low, high)
            rng.random(out=fractions[:size])


@dataclass(frozen=True)
class _Units:
    """Parts of an epoch, each from one shard."""

    shard: Numbers  # of each unit
    size: Numbers  # of each unit, in records
    shard_sizes: Numbers  # of each shard
    shard_begins: Numbers  # number of each shard's first record


def _sample(sizes: Numbers, count: int, seed: int) -> Numbers:
    """The number of records that an epoch of `count` records takes from each shard of a set."""
    total = int(sizes.sum())
    repeats, count = divmod(count, total)
    chosen = sizes * repeats
    if not count:
        return chosen
    rng = np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    if total - count < _SMALL_REST and total <= 1 << 32:
        left_out = np.searchsorted(ends, _last_of_shuffle(rng, total, count), side="right")
        return chosen + sizes - np.bincount(left_out, minlength=len(sizes))
    order = np.arange(total, dtype=id_type(total))
    rng.shuffle(order)
    taken = np.zeros(total, np.bool_)
    taken[order[:count]] = True
    begins = (ends - sizes).tolist()
    return chosen + [np.count_nonzero(taken[a:b]) for a, b in zip(begins, ends.tolist(), strict=True)]


def _last_of_shuffle(rng: np.random.Generator, total: int, begin: int) -> list[int]:
    """The last entries, from `begin`, of a shuffled `arange(total)`: numpy's shuffle fixes an array from its end."""
    words = _words(rng)
    moved: dict[int, int] = {}
    for place in range(total - 1, max(begin, 1) - 1, -1):
        mask = (1 << place.bit_length()) - 1
        # The same draw as in numpy's shuffle.
        other = next(masked for word in words if (masked := word & mask) <= place)
        moved[place], moved[other] = moved.get(other, other), moved.get(place, place)
    return [moved.get(place, place) for place in range(begin, total)]


def _words(rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.integers(0, 1 << 32, 1 << 10, np.uint32).tolist()


def _take_sorted(ids: Ids, positions: NDArray[np.float64], reach: float, out: Ids) -> None:
    """Write `ids` in the order of their positions, none of which is further than `reach` from its index."""
    end = 0
    for index in _sorted_indices(positions, reach):
        if index is None:  # equal positions: use the library's sort, whose order of equal values is unspecified
            out[:] = ids[np.argsort(positions)]
            return
        out[end : end + len(index)] = ids[index]
        end += len(index)


def _sorted_indices(positions: NDArray[np.float64], reach: float) -> Iterator[Numbers | None]:
    """Indices that sort positions, in pieces; None if two positions are equal."""
    margin = int(reach) + 1
    piece = max(_SORTED_TOGETHER, 4 * margin)
    for lower, upper in itertools.pairwise([*range(0, len(positions), piece), len(positions) + margin]):
        first = max(lower - margin, 0)
        near = positions[first : upper + margin]
        index = np.flatnonzero((near >= lower) & (near < upper))
        found = near[index]
        order = np.argsort(found)
        found = found[order]
        if (found[1:] == found[:-1]).any():
            yield None
            return
        yield index[order] + first
