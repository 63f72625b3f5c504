"""Slices into safetensors files, through torch.distributed.checkpoint: every rank writes its own.

The library brings the ranks together: it collects what each will write, and tells all of them when one fails. The files
are written here, block by block, so that nothing is copied in memory, Python's lock is not held, and the checksum is
that of what was meant to be written. `dcp.HuggingFaceStorageReader` reads them.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from tolktrain.checkpoint.slices import KINDS, Slice, Snapshot
from tolktrain.cluster.verdict import OtherRankFailed
from tolktrain.files.writing import naming

_BLOCK_BYTES = 8 * 1024**2
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Written:
    """What all ranks have written. Known to the coordinator."""

    files: dict[str, FileDigest]  # by path inside the checkpoint
    tensors: dict[str, Any]  # content of tensors.json


def write_snapshot(
    folder: Path,
    snapshot: Snapshot,
    group: dist.ProcessGroup | None,
    begin: Callable[[], None],
    finish: Callable[[Written], None],
) -> None:
    """Write the slices of all ranks below `folder`; collective over `group`, alone if that is None.

    Files are on disk (fsync) when `finish` is called.

    Args:
        folder: an unfinished checkpoint.
        snapshot: this rank's slices.
        group: all ranks, on gloo.
        begin: makes the folders; called on the group's first rank before anybody writes.
        finish: called on the first rank when everybody has written.

    Raises:
        OSError: this rank, or one whose error it is told, could not write.
        OtherRankFailed: another rank failed for another reason.
        ValueError: the slices of all ranks leave a gap in a tensor, or overlap.
    """
    slices = {f"{kind}/{name}": block for kind, name, block in snapshot.items()}
    rank = 0 if group is None else dist.get_rank(group)
    writer = _Writer(folder, rank, 1 if group is None else dist.get_world_size(group), begin, finish)
    if group is None:  # not a mistake, as the library suspects
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    try:
        dcp.save(dict(slices), storage_writer=writer, planner=_Planner(), process_group=group, no_dist=group is None)
    except CheckpointException as error:  # no Exception, so that it would pass by whoever handles those
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
    """Each rank writes the slices it has; together they must be whole tensors."""

    def set_up_planner(
        self, state_dict: Mapping[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self._slices: Mapping[str, Slice] = state_dict

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
    overlapping = _overlap(blocks)
    if covered != math.prod(shape) or not inside or overlapping:
        raise ValueError(
            f"{name}: the slices of all ranks hold {covered:,} of {math.prod(shape):,} elements of shape {list(shape)}"
            f"{' and overlap' * overlapping}; its slicing is not what its module says"
        )


def _overlap(blocks: list[Block]) -> bool:
    """Whether blocks meet. Those in the same columns must differ in rows; columns must be the same, or apart."""
    rows: dict[Block, list[tuple[int, int]]] = {}
    for offsets, sizes in blocks:
        begin, length = (offsets[0], sizes[0]) if sizes else (0, 1)
        rows.setdefault((offsets[1:], sizes[1:]), []).append((begin, begin + length))
    same = any(second[0] < first[1] for spans in rows.values() for first, second in itertools.pairwise(sorted(spans)))
    return same or any(_meet(first, second) for first, second in itertools.combinations(rows, 2))


def _meet(one: Block, other: Block) -> bool:
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
    """One safetensors file for each kind of tensor and rank."""

    def __init__(
        self, folder: Path, rank: int, world_size: int, begin: Callable[[], None], finish: Callable[[Written], None]
    ) -> None:
        self._folder = folder
        self._file_name = f"shard-{rank + 1:05d}-of-{world_size:05d}.safetensors"
        self._begin = begin
        self._finish = finish

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: see `prepare_global_plan`."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._begin()
        return plans

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> "Future[list[WriteResult]]":
        results: list[WriteResult] = []
        for kind in KINDS:
            items = [item for item in plan.items if item.index.fqn.startswith(f"{kind}/")]
            if items:
                blocks: dict[str, Any] = {
                    item.index.fqn.removeprefix(f"{kind}/"): planner.resolve_data(item) for item in items
                }
                offsets = {name: list(item.index.offset or ()) for name, item in zip(blocks, items, strict=True)}
                name = f"{kind}/{self._file_name}"
                digest = write_safetensors(self._folder / name, blocks, offsets)
                results += [WriteResult(item.index, digest["size"], (name, digest, item.tensor_data)) for item in items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files: dict[str, FileDigest] = {}
        tensors: dict[str, Any] = {kind: {} for kind in KINDS}
        for result in (result for part in results for result in part):
            file, digest, data = result.storage_data
            files[file] = digest
            kind, _, name = result.index.fqn.partition("/")
            entry = tensors[kind].setdefault(name, {"shape": list(data.size), "slices": []})
            block = {"file": file, "offsets": list(data.chunk.offsets), "sizes": list(data.chunk.sizes)}
            entry["slices"].append(block)
        self._finish(Written(files, tensors))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], offsets: Mapping[str, list[int]]) -> FileDigest:
    """Write float32 tensors on the CPU as a safetensors file, with their places in whole tensors; wait for the disk.

    Returns:
        Size and SHA-256 of what was written.
    """
    header = _header(tensors, offsets)
    hasher, size = hashlib.sha256(), 0
    # A folder that is gone is not made again: another job may have taken over the run.
    with naming(path), open(path, "xb", buffering=1 << 20) as file:
        for block in _blocks(header, tensors):
            hasher.update(block)
            if file.write(block) != len(block):
                raise OSError(errno.EIO, "not everything was written", str(path))
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": hasher.hexdigest()}


def _blocks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors.values():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
        flat: Any = tensor.detach().view(-1).numpy()
        content = memoryview(flat).cast("B")
        for begin in range(0, len(content), _BLOCK_BYTES):
            yield content[begin : begin + _BLOCK_BYTES]


def _header(tensors: Mapping[str, Tensor], offsets: Mapping[str, list[int]]) -> bytes:
    """Length and JSON, as https://huggingface.co/docs/safetensors describes it, with the library's note on slices."""
    places = {name: {"saved_offsets": offsets[name]} for name in tensors}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places)}}
    begin = 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}
        begin += tensor.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
