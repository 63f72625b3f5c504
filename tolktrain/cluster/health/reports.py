"""The report of each rank about its machine: plain values that ranks exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Device:
    """The device of a rank."""

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
    """The result of multiplying matrices on a rank's device."""

    fault: str = ""  # what is wrong with the results; empty if they are right
    flops_per_second: float = 0.0  # of the fastest of several repetitions


@dataclass(frozen=True)
class Folder:
    """The run directory as a node sees it."""

    fault: str = ""  # why nothing can be written there; empty if it is writable
    is_rank_zeros: bool = True  # whether it contains the file that rank 0 has written
    free_bytes: int = 0
    free_files: int | None = None  # None where the file system has no such limit


@dataclass(frozen=True)
class RankReport:
    """What a rank has measured by itself."""

    rank: int
    node: str  # host name, Slurm's if there is one
    device: Device
    product: Product
    versions: Mapping[str, str] = field(default_factory=dict)  # by package or component
    clock: tuple[tuple[float, float], ...] = ()  # each exchange with all ranks: Unix time before and after it
    folder: Folder | None = None  # of the first rank of each node


@dataclass(frozen=True)
class ExchangeReport:
    """What a rank has measured of the network."""

    rank: int
    node: str
    all_reduce_bytes: int
    all_reduce_seconds: tuple[float, ...]  # of each repetition
    num_wrong_sums: int  # elements of all repetitions
    pair_bytes_per_second: tuple[float | None, ...] = ()  # each round, in each direction; None where it sat out


@dataclass(frozen=True)
class Space:
    """The space that the run needs in its run directory."""

    folder: str
    checkpoint_bytes: int  # of one checkpoint
    num_checkpoints: int  # for which there must be room in addition to the existing ones
    num_files: int
    keep_last: int  # checkpoint.keep_last
    num_existing: int  # existing checkpoints of this run
    reclaimed_bytes: int = 0  # of files that are deleted before training
