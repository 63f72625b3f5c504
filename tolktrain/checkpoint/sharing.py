"""Which ranks write their slices into one file, if there are more ranks than the limit of files. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tolktrain.checkpoint.slices import Shape

MOST_FILES = 4096  # of a checkpoint; more files overload the metadata server of a parallel file system

Block = tuple[Shape, Shape, Shape]
"""Shape of a whole tensor; where a block begins in it; sizes of the block."""


@dataclass(frozen=True)
class SharedBlock:
    """A block of a tensor in a file, held by one rank or as consecutive rows by several ranks."""

    key: str
    shape: Shape  # of the whole tensor
    offsets: Shape
    sizes: Shape
    holders: tuple[tuple[int, int], ...]  # rank, and its number of elements


@dataclass(frozen=True)
class SharedFile:
    """A file and its blocks. Each tensor name occurs once in it, because safetensors requires it."""

    name: str
    ranks: tuple[int, ...]
    blocks: tuple[SharedBlock, ...]

    @property
    def writer(self) -> int:
        """The rank that writes the file."""
        return self.ranks[0]


def share_files(
    blocks: Sequence[Mapping[str, Block]], series: Sequence[int], most_files: int
) -> list[SharedFile | None]:
    """The file that holds each rank's blocks; None for a rank without blocks.

    Ranks share a file only if their blocks of each tensor are consecutive, so that their union is a block again.
    Otherwise there may be more than `most_files`.

    Args:
        blocks: of each rank, by key.
        series: of each rank; ranks of one series hold consecutive rows of the same tensors.
        most_files: desired limit of files.
    """
    members: dict[int, list[int]] = {}
    for rank, number in enumerate(series):
        if blocks[rank]:
            members.setdefault(number, []).append(rank)
    size = 1
    while sum(-(-len(ranks) // size) for ranks in members.values()) > max(most_files, len(members)):
        size += 1
    found = [group for ranks in members.values() for group in _groups(ranks, blocks, size)]
    files: list[SharedFile | None] = [None] * len(blocks)
    for number, (ranks, merged) in enumerate(found):
        name = f"shard-{number + 1:05d}-of-{len(found):05d}.safetensors"
        file = SharedFile(name, tuple(ranks), tuple(merged.values()))
        for rank in ranks:
            files[rank] = file
    return files


def _groups(
    ranks: Sequence[int], blocks: Sequence[Mapping[str, Block]], size: int
) -> list[tuple[list[int], dict[str, SharedBlock]]]:
    """Ranks of a series in groups of up to `size`, with the merged blocks of each group."""
    groups: list[tuple[list[int], dict[str, SharedBlock]]] = []
    for rank in ranks:
        merged = _merged(groups[-1][1], rank, blocks[rank]) if groups and len(groups[-1][0]) < size else None
        if merged is None:
            groups.append(([rank], _merged({}, rank, blocks[rank]) or {}))
        else:
            groups[-1] = ([*groups[-1][0], rank], merged)
    return groups


def _merged(there: Mapping[str, SharedBlock], rank: int, more: Mapping[str, Block]) -> dict[str, SharedBlock] | None:
    """The blocks of a file merged with those of one more rank; None if they are not consecutive."""
    result = dict(there)
    for key, (shape, offsets, sizes) in more.items():
        count = math.prod(sizes)
        block = there.get(key)
        if block is None:
            result[key] = SharedBlock(key, shape, offsets, sizes, ((rank, count),))
            continue
        follows = bool(shape) and block.shape == shape and offsets[0] == block.offsets[0] + block.sizes[0]
        if not follows or (offsets[1:], sizes[1:]) != (block.offsets[1:], block.sizes[1:]):
            return None
        merged = (block.sizes[0] + sizes[0], *sizes[1:])
        result[key] = SharedBlock(key, shape, block.offsets, merged, (*block.holders, (rank, count)))
    return result
