"""What each rank reports about its machine. Plain values, which travel between ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Device:
    """Where a rank computes."""

    kind: Literal["cuda", "cpu"]
    name: str  # of the model: "NVIDIA H100 80GB HBM3"
    index: int = 0  # among those that the rank sees
    uuid: str = ""  # as `nvidia-smi -L` shows it

    def __str__(self) -> str:
        if self.kind == "cpu":
            return "CPU"
        return f"GPU {self.index}, {self.uuid}" if self.uuid else f"GPU {self.index}"


@dataclass(frozen=True)
class Product:
    """How a rank's device multiplies matrices."""

    fault: str = ""  # what is wrong with the results; empty if they are right
    flops_per_second: float = 0.0  # of the fastest of several repetitions


@dataclass(frozen=True)
class Folder:
    """A node's view of the run's folder."""

    fault: str = ""  # why nothing can be written there; empty if it can
    is_rank_zeros: bool = True  # whether it holds what rank 0 has written
    free_bytes: int = 0
    free_files: int | None = None  # None where the file system has no such limit


@dataclass(frozen=True)
class RankReport:
    """What a rank has found without the others' help."""

    rank: int
    node: str  # host name, Slurm's if there is one
    device: Device
    product: Product
    versions: Mapping[str, str] = field(default_factory=dict)  # by what they are of
    clock: tuple[tuple[float, float], ...] = ()  # each exchange with all ranks: Unix time before and after it
    folder: Folder | None = None  # of the first rank of each node


@dataclass(frozen=True)
class ExchangeReport:
    """What a rank has seen of the network."""

    rank: int
    node: str
    all_reduce_bytes: int
    all_reduce_seconds: tuple[float, ...]  # of each repetition
    num_wrong_sums: int  # elements of all repetitions
    pair_bytes_per_second: tuple[float | None, ...] = ()  # each round, in each direction; None where it sat out


@dataclass(frozen=True)
class Space:
    """What the run's folder must have room for."""

    folder: str
    checkpoint_bytes: int  # of one
    num_checkpoints: int  # for which there must be room besides those that are there
    num_files: int
    keep_last: int  # checkpoint.keep_last
    num_existing: int  # checkpoints of this run that are there
    reclaimed_bytes: int = 0  # of what is deleted before training
