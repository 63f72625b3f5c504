"""LoRA (arXiv 2106.09685): products of two narrow matrices that are added to the matrices of transformer layers.

A matrix W [out, in] becomes W + (alpha / rank) B A with A [rank, in] and B [out, rank]. A is random and B zero at the
start, so that the model begins as it was. The canonical names of both are those of W with `lora_A` and `lora_B`. Each
canonical matrix has its own pair, also those that megatron-core keeps in one parameter.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.config.model import LoraTarget
from tolktrain.model.architecture import Lora
from tolktrain.model.parameter_layout import ParameterView, Shape
from tolktrain.parallel.megatron import (
    TransformerConfig,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

A, B = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True)
class Matrix:
    """A canonical matrix inside a linear layer that may have several."""

    name: LoraTarget
    shape: Shape  # [out, in], of the whole matrix
    heads: int = 1  # heads in a group; see `ParameterView.interleaved`


@dataclass(frozen=True)
class Fused:
    """The canonical matrices that one linear layer holds, and how their rows alternate."""

    matrices: tuple[Matrix, ...]
    is_row_split: bool  # tensor ranks split the inputs, not the outputs
    num_groups: int = 1  # of heads; 1 if the matrices follow one another

    def targeted(self, lora: Lora) -> list[Matrix]:
        """Those with a pair."""
        return [matrix for matrix in self.matrices if matrix.name in lora.targets]


class LowRank(nn.Module):
    """What the pairs of a linear layer add to its product. Takes and returns tensors, so that ZeRO 3's hooks apply."""

    def __init__(self, fused: Fused, lora: Lora, config: TransformerConfig) -> None:
        super().__init__()
        size, found = config.tensor_model_parallel_size, fused.targeted(lora)
        width, rows = fused.matrices[0].shape[1], sum(matrix.shape[0] for matrix in found)
        local = (width // size, rows) if fused.is_row_split else (width, rows // size)
        self.a = nn.Parameter(torch.empty(len(found) * lora.rank, local[0], dtype=config.params_dtype))
        self.b = nn.Parameter(torch.empty(local[1], lora.rank, dtype=config.params_dtype))
        # Each tensor rank applies the matrix that is not split to its slice of the sequence.
        replicated = self.b if fused.is_row_split else self.a
        replicated.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._fused, self.lora, self._size = fused, lora, size
        self.scale = lora.scale  # 0 while the model is used without updates
        self._shares_sequence = config.sequence_parallel

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] to [..., out], this tensor rank's part of both as in the linear layer."""
        narrow = functional.linear(states, self.a) * self.scale
        if self._size > 1:
            narrow = self._exchange()(narrow)
        fused, rank = self._fused, self.lora.rank
        found = fused.targeted(self.lora)
        if len(fused.matrices) == 1:
            return functional.linear(narrow, self.b)
        # Rows of all matrices, group by group: [groups, heads of a group, rows of a head].
        groups = fused.num_groups if fused.num_groups == 1 else fused.num_groups // self._size
        heads = self.b.unflatten(0, (groups, sum(matrix.heads for matrix in found), -1))
        wide = dict(zip(found, heads.split([matrix.heads for matrix in found], dim=1), strict=True))
        inner = dict(zip(found, narrow.split(rank, dim=-1), strict=True))
        pieces = []
        for matrix in fused.matrices:
            if matrix in wide:
                piece = functional.linear(inner[matrix], wide[matrix].flatten(0, 2))
            else:
                piece = narrow.new_zeros(*narrow.shape[:-1], matrix.shape[0] // self._size)
            pieces.append(piece.unflatten(-1, (groups, -1)))
        return torch.cat(pieces, dim=-1).flatten(-2)

    def _exchange(self) -> Callable[[Tensor], Tensor]:
        """Of the narrow states, between tensor ranks."""
        if self._fused.is_row_split:
            shares = self._shares_sequence
            return reduce_scatter_to_sequence_parallel_region if shares else reduce_from_tensor_model_parallel_region
        return gather_from_sequence_parallel_region if self._shares_sequence else copy_to_tensor_model_parallel_region

    def parameter_views(self, prefix: str) -> dict[str, ParameterView]:
        """Canonical views of both matrices; `prefix` is the name of the layer."""
        fused, rank = self._fused, self.lora.rank
        found = fused.targeted(self.lora)
        interleaved = tuple(matrix.heads for matrix in found) if fused.num_groups > 1 else ()
        names = [tuple(f"{prefix}.{matrix.name}.{end}" for matrix in found) for end in (A, B)]
        narrow = tuple((rank, matrix.shape[1]) for matrix in found)
        wide = tuple((matrix.shape[0], rank) for matrix in found)
        split_in, split_out = (1, None) if fused.is_row_split else (None, 0)
        return {
            "a": ParameterView(names[0], narrow, "lora", "normal", decays=True, dim=split_in),
            "b": ParameterView(
                names[1],
                wide,
                "lora",
                "zeros",
                decays=True,
                dim=split_out,
                interleaved=interleaved,
                num_groups=fused.num_groups,
            ),
        }


def lora_size(lora: Lora | None, part: str, shapes: Mapping[str, Shape]) -> int:
    """Elements of all pairs of a transformer layer of a part of the model; `shapes` are those of its matrices."""
    if lora is None or part not in lora.parts:
        return 0
    return sum(lora.rank * sum(shape) for name, shape in shapes.items() if name in lora.targets)


def pair_of(name: str) -> tuple[str, str]:
    """Canonical names of the pair of a matrix."""
    stem = name.removesuffix("weight")
    return stem + A, stem + B


def is_lora(name: str) -> bool:
    """Whether a canonical tensor is one of a pair."""
    return name.endswith((A, B))


class Merged(Mapping[str, Tensor]):
    """Canonical tensors without pairs: those of each pair are added to their matrix when it is read, in float32."""

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Tensor], lora: Lora) -> None:
        """`shapes` of all tensors, pairs included; `read` returns one by its name."""
        self._all = shapes
        self._read = read
        self._lora = lora
        self.shapes = {name: shape for name, shape in shapes.items() if not is_lora(name)}

    def __getitem__(self, name: str) -> Tensor:
        matrix = self._read(name)
        narrow, wide = pair_of(name)
        if narrow not in self._all:
            return matrix
        return matrix.float() + self._lora.scale * (self._read(wide).float() @ self._read(narrow).float())

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
