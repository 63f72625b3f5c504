"""Writes slices to safetensors files through torch.distributed.checkpoint; every rank writes its own slices.

The library coordinates the ranks: it collects the plans of all ranks, and raises on all of them when one fails. This
module writes the files block by block: nothing is copied in memory, the interpreter lock is not held, and the checksum
covers the bytes in memory, not the bytes read back. `dcp.HuggingFaceStorageReader` can read the files.

If there are more ranks than the limit of files, neighbouring ranks share a file (see `sharing`): the first of them
writes it, and the others send their slices to it. Each file has one writer, because NFS clients that write to the same
page overwrite each other's bytes.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from tolktrain.checkpoint.manifest import FileDigest
from tolktrain.checkpoint.reader import TENSOR_FOLDER
from tolktrain.checkpoint.sharing import MOST_FILES, SharedFile, share_files
from tolktrain.checkpoint.slices import KINDS, Shape, Slice, Snapshot
from tolktrain.cluster.watch.failures import OtherRankFailed
from tolktrain.files.writing import naming

_BLOCK_BYTES = 8 * 1024**2
_HEADER_ALIGNMENT = 8
_ALL = "slices"  # the key of what the library hands to the planner


@dataclass(frozen=True)
class Written:
    """The files and slices that all ranks have written; available on the coordinator."""

    files: dict[str, FileDigest]  # by path inside the checkpoint
    tensors: dict[str, Any]  # content of tensors.json


def write_snapshot(
    folder: Path,
    snapshot: Snapshot,
    group: dist.ProcessGroup | None,
    begin: Callable[[], None],
    finish: Callable[[Written], None],
    series: int = 0,
    most_files: int = MOST_FILES,
) -> None:
    """Write the slices of all ranks below `folder`; collective over `group`, or of this process alone if it is None.

    The files are on disk (fsync) when `finish` is called.

    Args:
        folder: an unfinished checkpoint.
        snapshot: this rank's slices.
        group: all ranks, on gloo.
        begin: creates the folders; called on the group's first rank before any rank writes.
        finish: called on the first rank when all ranks have written.
        series: the same number on ranks that hold consecutive rows of the same tensors: the data ranks of one tensor
            and pipeline rank.
        most_files: limit of files beyond which neighbouring ranks of a series share a file.

    Raises:
        OSError: this rank could not write.
        OtherRankFailed: another rank failed for another reason.
        ValueError: the slices of all ranks leave a gap in a tensor, or overlap.
    """
    slices = {f"{kind}/{name}": block for kind, name, block in snapshot.items()}
    rank = 0 if group is None else dist.get_rank(group)
    writer = _Writer(folder, rank, group, begin, finish, series, most_files)
    if group is None:  # not a mistake, as the library suspects
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    try:
        # As one entry: the library makes and logs a call for each entry, which takes longer than writing a small one.
        dcp.save({_ALL: slices}, storage_writer=writer, planner=_Planner(), process_group=group, no_dist=group is None)
    except CheckpointException as error:  # a BaseException, which `except Exception` would not catch
        raise _explained(error, rank, folder) from error


def _explained(error: CheckpointException, rank: int, folder: Path) -> Exception:
    failures = {number: failure[0] for number, failure in error.failures.items()}
    first, reason = next(iter(failures.items()))
    if rank in failures:
        own = failures[rank]
        return own if isinstance(own, Exception) else RuntimeError(f"{folder} cannot be written: {own!r}")
    if isinstance(reason, OSError):
        return OtherRankFailed(f"rank {first} failed: {reason}")
    return OtherRankFailed(f"rank {first} failed: {type(reason).__name__}: {reason}")


class _Planner(dcp.SavePlanner):
    """Each rank writes the slices that it holds; the slices of all ranks must cover every tensor exactly once."""

    def set_up_planner(
        self, state_dict: Mapping[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self._slices: Mapping[str, Slice] = state_dict[_ALL]

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(key, block) for key, block in self._slices.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        tensors: dict[str, TensorStorageMetadata] = {}
        for plan in all_plans:
            for item in plan.items:
                data = item.tensor_data
                assert data is not None
                entry = tensors.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
                if entry.size != data.size:
                    raise ValueError(
                        f"{item.index.fqn} has shape {list(entry.size)} on one rank, {list(data.size)} on another"
                    )
                entry.chunks.append(data.chunk)
        for name, entry in tensors.items():
            check_tiling(name, tuple(entry.size), [(tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks])
        return all_plans, Metadata(state_dict_metadata=dict(tensors))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._slices[write_item.index.fqn].tensor


Block = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def check_tiling(name: str, shape: tuple[int, ...], blocks: list[Block]) -> None:
    """Raise ValueError if the blocks do not cover a tensor of `shape` exactly once."""
    inside = all(o >= 0 and o + n <= m for block in blocks for o, n, m in zip(*block, shape, strict=True))
    covered = sum(math.prod(sizes) for _, sizes in blocks)
    overlapping = _any_overlap(blocks)
    if covered != math.prod(shape) or not inside or overlapping:
        raise ValueError(
            f"{name}: the slices of all ranks hold {covered:,} of {math.prod(shape):,} elements of shape {list(shape)}"
            f"{' and overlap' * overlapping}; its slicing is not what its module says"
        )


def _any_overlap(blocks: list[Block]) -> bool:
    """Whether any two blocks overlap. Blocks of the same columns must differ in rows; columns must be equal or
    disjoint."""
    rows: dict[Block, list[tuple[int, int]]] = {}
    for offsets, sizes in blocks:
        begin, length = (offsets[0], sizes[0]) if sizes else (0, 1)
        rows.setdefault((offsets[1:], sizes[1:]), []).append((begin, begin + length))
    same = any(second[0] < first[1] for spans in rows.values() for first, second in itertools.pairwise(sorted(spans)))
    return same or any(_overlaps(first, second) for first, second in itertools.combinations(rows, 2))


def _overlaps(one: Block, other: Block) -> bool:
    return all(a < b + q and b < a + p for a, p, b, q in zip(*one, *other, strict=True))


def _write_item(key: str, block: Slice) -> WriteItem:
    offsets, sizes = torch.Size(block.offsets), torch.Size(block.sizes)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets, sizes),
        properties=TensorProperties(dtype=block.tensor.dtype),
        size=torch.Size(block.shape),
    )
    return WriteItem(index=MetadataIndex(key, offsets), type=WriteItemType.SHARD, tensor_data=data)


class _Writer(dcp.StorageWriter):
    """Writes one safetensors file for each rank or group of neighbouring ranks."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        group: dist.ProcessGroup | None,
        begin: Callable[[], None],
        finish: Callable[[Written], None],
        series: int,
        most_files: int,
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._group = group
        self._begin = begin
        self._finish = finish
        self._series = series
        self._most_files = most_files

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Does nothing: a writer is used for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `prepare_global_plan` sets up the folders."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return replace(plan, storage_data=self._series)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        blocks = [{item.index.fqn: _block_of(item) for item in plan.items} for plan in plans]
        files = share_files(blocks, [plan.storage_data for plan in plans], self._most_files)
        self._begin()
        return [replace(plan, storage_data=file) for plan, file in zip(plans, files, strict=True)]

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> "Future[list[WriteResult]]":
        file: SharedFile | None = plan.storage_data
        results: list[WriteResult] = []
        own: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        if file is not None and file.writer == self._rank:
            name = f"{TENSOR_FOLDER}/{file.name}"
            digest = self._write(self._folder / name, file, own)
            for block in file.blocks:
                index = MetadataIndex(block.key, block.offsets)
                results.append(WriteResult(index, digest["size"], (name, digest, block)))
        elif file is not None:
            for key in [block.key for block in file.blocks if block.key in own]:
                for part in _split(own[key]):
                    dist.send(part, group=self._group, group_dst=file.writer)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write(self, path: Path, file: SharedFile, own: Mapping[str, Tensor]) -> FileDigest:
        content = self._content(file, own)
        try:
            return write_safetensors(path, {block.key: (block.offsets, block.sizes) for block in file.blocks}, content)
        except BaseException:
            for _ in content:  # receive the rest: otherwise the sending ranks would wait
                pass
            raise

    def _content(self, file: SharedFile, own: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The content of the file in parts; the memory of a part from another rank is reused for the next one."""
        memory = torch.empty(_BLOCK_BYTES // 4 if len(file.ranks) > 1 else 0)
        for block in file.blocks:
            for rank, count in block.holders:
                if rank == self._rank:
                    yield from _split(own[block.key])
                    continue
                for begin in range(0, count, len(memory)):
                    part = memory[: min(len(memory), count - begin)]
                    dist.recv(part, group=self._group, group_src=rank)
                    yield part

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files: dict[str, FileDigest] = {}
        tensors: dict[str, Any] = {kind: {} for kind in KINDS}
        for result in (result for part in results for result in part):
            file, digest, block = result.storage_data
            files[file] = digest
            kind, _, name = block.key.partition("/")
            entry = tensors[kind].setdefault(name, {"shape": list(block.shape), "slices": []})
            entry["slices"].append({"file": file, "offsets": list(block.offsets), "sizes": list(block.sizes)})
        self._finish(Written(files, tensors))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _block_of(item: WriteItem) -> tuple[Shape, Shape, Shape]:
    data = item.tensor_data
    assert data is not None
    return tuple(data.size), tuple(data.chunk.offsets), tuple(data.chunk.sizes)


def write_safetensors(path: Path, places: Mapping[str, tuple[Shape, Shape]], content: Iterable[Tensor]) -> FileDigest:
    """Write float32 tensors as a safetensors file and wait for the disk.

    Args:
        path: of a file that does not exist yet.
        places: offsets in the whole tensor and sizes of each block, by name.
        content: all blocks one after the other, flat, on the CPU, in parts of any length.

    Returns:
        Size and SHA-256 of what was written.
    """
    hasher, size = hashlib.sha256(), 0
    # A missing folder is not created again: another job may have taken over the run.
    with naming(path), open(path, "xb", buffering=1 << 20) as file:
        for block in itertools.chain([memoryview(_header(places))], map(_bytes_of, content)):
            hasher.update(block)
            if file.write(block) != len(block):
                raise OSError(errno.EIO, "not everything was written", str(path))
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": hasher.hexdigest()}


def _split(tensor: Tensor) -> Iterator[Tensor]:
    """The flat tensor in parts of at most _BLOCK_BYTES."""
    assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
    yield from tensor.detach().view(-1).split(_BLOCK_BYTES // 4)


def _bytes_of(flat: Tensor) -> memoryview:
    array: Any = flat.numpy()
    return memoryview(array).cast("B")


def _header(places: Mapping[str, tuple[Shape, Shape]]) -> bytes:
    """Length and JSON, as https://huggingface.co/docs/safetensors describes it, with the library's note on slices."""
    noted = {name: {"saved_offsets": list(offsets)} for name, (offsets, _) in places.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "DCP_SHARDING_INFO": json.dumps(noted)}}
    begin = 0
    for name, (_, sizes) in places.items():
        end = begin + 4 * math.prod(sizes)
        entries[name] = {"dtype": "F32", "shape": list(sizes), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
