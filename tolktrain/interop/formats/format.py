"""The interface of a format of weights. The rest of the program does not depend on particular formats."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tolktrain.checkpoint.slices import Shape
from tolktrain.model.architecture import Architecture


class WeightsReader(Protocol):
    """Reads parts of tensors by their canonical names."""

    def block(self, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """The part of a tensor that begins at `offsets`, on the CPU."""


@dataclass(frozen=True)
class Weights:
    """Description of weights that were found and verified. Plain values: rank 0 sends them to the other ranks."""

    format: str  # name of the format
    folder: Path  # of the files that are read; of a run, its checkpoint
    architecture: Architecture
    shapes: Mapping[str, Shape]  # by canonical name
    step: int | None  # of training, if it is known
    stage: str | None
    digest: str  # SHA-256 that identifies the content
    # SHA-256 of the tokenizers of the data, under "text" and "speech", as far as they are known.
    tokenizers: Mapping[str, str | None]


@dataclass(frozen=True)
class WeightsFormat:
    """A module of this package defines one as `FORMAT`; `tolktrain.interop.formats.find` lists the modules."""

    name: str  # for messages and records
    recognizes: Callable[[Path], bool]  # whether a folder has this format
    # What a folder holds, after its files were verified; called in one process. Raises UserError.
    describe: Callable[[Path], Weights]
    # Opens described weights; called in each process.
    open: Callable[[Weights], AbstractContextManager[WeightsReader]]
