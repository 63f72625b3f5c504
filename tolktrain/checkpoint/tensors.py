"""Named tensors in safetensors shards, through torch.distributed.checkpoint.

Each rank writes its share, any rank reads any of it.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

# A shard is assembled in memory before it is written.
SHARD_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Shares:
    """Which rank writes which tensor, and into which of its files; the same on every rank.

    owners: rank by tensor name. files: number of the file, from 1, by tensor name.
    """

    owners: dict[str, int]
    files: dict[str, int]

    @classmethod
    def split(cls, shapes: Mapping[str, tuple[int, ...]], num_ranks: int) -> "Shares":
        """Give whole tensors to ranks so that their bytes (float32) are about equal, largest tensors first."""
        owners: dict[str, int] = {}
        files: dict[str, int] = {}
        load = [0] * num_ranks
        for name in sorted(shapes, key=lambda name: (-math.prod(shapes[name]), name)):
            rank = load.index(min(load))
            size = 4 * math.prod(shapes[name])
            load[rank] += size
            owners[name] = rank
            files[name] = 1 + (load[rank] - size) // SHARD_BYTES
        return cls(owners, files)

    @classmethod
    def of_stages(cls, stages: Sequence[Mapping[str, tuple[int, ...]]], ranks_per_stage: int) -> "Shares":
        """The same where only the consecutive ranks of a pipeline stage can give the tensors of that stage."""
        owners: dict[str, int] = {}
        files: dict[str, int] = {}
        for stage, shapes in enumerate(stages):
            part = cls.split(shapes, ranks_per_stage)
            owners |= {name: stage * ranks_per_stage + rank for name, rank in part.owners.items()}
            files |= part.files
        return cls(owners, files)

    def of(self, rank: int) -> list[str]:
        """Names of the tensors that `rank` writes."""
        return [name for name, owner in self.owners.items() if owner == rank]


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shares: Shares) -> None:
    """Write this rank's `tensors` below `folder`. Collective; raises on every rank when one of them fails.

    The files are on disk (fsync) when it returns.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=shares.files, save_distributed=True)
    with _quiet_checkpointing():
        try:
            dcp.save(dict(tensors), storage_writer=writer, no_dist=_alone())
        except CheckpointException as error:  # no Exception, so that it would pass by whoever handles those
            reasons = "; ".join(f"rank {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
            raise RuntimeError(f"{folder} cannot be written ({reasons})") from error


def read_tensors(folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Tensors below `folder` by name, whole, on the CPU, however many ranks wrote them. Not collective.

    With `names`, those of them that are there; else all.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and (names is None or name in names)
    }
    with _quiet_checkpointing():
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@contextmanager
def _quiet_checkpointing() -> Iterator[None]:
    """Silences the notes of torch.distributed.checkpoint on how it was called, which are not about the user's run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
