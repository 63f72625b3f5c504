"""Slices of named tensors: the parts that a rank writes to a checkpoint or reads from one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Shape = tuple[int, ...]

PARAMETERS, FIRST_MOMENTS, SECOND_MOMENTS = "parameters", "first_moments", "second_moments"
KINDS = (PARAMETERS, FIRST_MOMENTS, SECOND_MOMENTS)


@dataclass(frozen=True)
class Slice:
    """A block of a named tensor."""

    tensor: Tensor  # float32 on the CPU, contiguous
    offsets: Shape  # where it begins in the whole tensor
    shape: Shape  # of the whole tensor

    @classmethod
    def whole(cls, tensor: Tensor) -> "Slice":
        """All of a tensor."""
        return cls(tensor, (0,) * tensor.dim(), tuple(tensor.shape))

    @property
    def sizes(self) -> Shape:
        """Shape of the block."""
        return tuple(self.tensor.shape)


@dataclass(frozen=True)
class Snapshot:
    """The part of a checkpoint that one rank writes: slices by canonical name, at most one of each tensor."""

    parameters: dict[str, Slice] = field(default_factory=dict)
    first_moments: dict[str, Slice] = field(default_factory=dict)
    second_moments: dict[str, Slice] = field(default_factory=dict)

    def kinds(self) -> dict[str, dict[str, Slice]]:
        """Slices by kind."""
        return {
            PARAMETERS: self.parameters,
            FIRST_MOMENTS: self.first_moments,
            SECOND_MOMENTS: self.second_moments,
        }

    def items(self) -> Iterator[tuple[str, str, Slice]]:
        """Kind, name and slice of each."""
        for kind, slices in self.kinds().items():
            for name, block in slices.items():
                yield kind, name, block

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(block.tensor.nbytes for _, _, block in self.items())


class Source(Protocol):
    """Something that slices can be read from."""

    def shapes(self, kind: str) -> Mapping[str, Shape]:
        """Whole shapes of the tensors of a kind, by name."""

    def read(self, kind: str, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """A block of a tensor, float32 on the CPU."""
