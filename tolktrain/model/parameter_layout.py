"""Canonical parameter names: plain, unfused, in Hugging Face style, the same in every layout.

Megatron keeps query, key and value in one matrix (interleaved by group) and gate and up in another. A `ParameterView`
describes which canonical tensors a module's parameter holds, and splits and joins tensors of its shape (values,
gradients, moments).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tolktrain.config.training import ParameterGroup
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import LayerCost, StepCounts

Shape = tuple[int, ...]
# Initial values: normal, also smaller for a projection that writes into the residual stream; or constant.
Initial = Literal["normal", "residual output", "ones", "zeros"]


@dataclass(frozen=True)
class TensorShare:
    """The part of each split tensor that a rank holds: part `rank` of `size` equal ones along the split dimension."""

    rank: int = 0
    size: int = 1

    def rows(self, length: int) -> tuple[int, int]:
        """Begin and end of this part of `length` rows. Later parts may be shorter, or empty."""
        part = self.padded_rows(length)
        return min(self.rank * part, length), min((self.rank + 1) * part, length)

    def padded_rows(self, length: int) -> int:
        """Rows of every part after padding, which makes all parts equal."""
        return -(-length // self.size)


WHOLE = TensorShare()


@dataclass(frozen=True)
class ParameterView:
    """The canonical tensors inside one parameter of the model.

    A parameter of a tensor-parallel rank holds a slice of each in dimension `dim`; vocabularies are padded with zeros
    if they cannot be divided. Query, key and value keep whole groups together, so that their parts are slices too.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of the whole tensors
    group: ParameterGroup
    initial: Initial
    decays: bool  # whether weight decay applies: matrices and tables, not norms, biases and layer weights
    dim: int | None = None  # that tensor ranks split; None if each rank holds the whole tensor
    is_copy: bool = False  # of a table that belongs to another pipeline stage
    interleaved: tuple[
        int, ...
    ] = ()  # heads that each name has in turn within one group; () if stored one after the other
    num_groups: int = 1

    def split(self, tensor: Tensor, share: TensorShare = WHOLE) -> dict[str, Tensor]:
        """Canonical slices in a tensor of the parameter's shape, including padding. They may share its memory."""
        if len(self.names) == 1:
            return {self.names[0]: tensor}
        if not self.interleaved:
            pieces: Iterable[Tensor] = tensor.split([self._length(shape, share) for shape in self.shapes])
        else:
            heads = tensor.unflatten(0, (self.num_groups // share.size, sum(self.interleaved), -1))
            pieces = (piece.flatten(0, 2) for piece in heads.split(list(self.interleaved), dim=1))
        return dict(zip(self.names, pieces, strict=True))

    def join(self, pieces: Mapping[str, Tensor], share: TensorShare = WHOLE) -> Tensor:
        """The parameter of a rank, from whole canonical tensors; further entries of `pieces` are ignored."""
        tensors = [self._slice(pieces[name], share) for name in self.names]
        if len(tensors) == 1:
            return tensors[0]
        if not self.interleaved:
            return torch.cat(tensors)
        parts = zip(tensors, self.interleaved, strict=True)
        heads = [tensor.unflatten(0, (self.num_groups // share.size, count, -1)) for tensor, count in parts]
        return torch.cat(heads, dim=1).flatten(0, 2)

    def sections(self, share: TensorShare, start: int, stop: int) -> list["Section"]:
        """The parts of canonical tensors in rows `start` to `stop` of a rank's parameter, without padding.

        A row is everything under one index of the first dimension; a scalar is a single row.
        """
        numbers = torch.arange(self.num_rows(share)).unsqueeze(1)
        rows_of = {name: column.flatten() for name, column in self.split(numbers, share).items()}
        found = [
            self._section(name, shape, rows_of[name], share, start, stop)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return [section for section in found if section is not None]

    def num_rows(self, share: TensorShare) -> int:
        """Rows of a rank's parameter, including padding."""
        return sum(self._length(shape, share) if shape else 1 for shape in self.shapes)

    def local_shape(self, share: TensorShare) -> Shape:
        """Shape of a rank's parameter, including padding."""
        first, *others = self.shapes[0] or (1,)
        if self.dim is not None and self.dim > 0:
            others[self.dim - 1] //= share.size
        return (self.num_rows(share), *others) if self.shapes[0] else ()

    def _section(
        self, name: str, shape: Shape, rows: Tensor, share: TensorShare, start: int, stop: int
    ) -> "Section | None":
        if not shape:
            return Section(name, shape, (), (), slice(0, 1)) if start < stop else None
        first = share.rank * len(rows) if self.dim == 0 else 0
        rows = rows[: max(0, shape[0] - first)]  # without padding
        inside = torch.nonzero((rows >= start) & (rows < stop)).flatten()
        if not len(inside):
            return None
        begin, end = int(inside[0]), int(inside[-1]) + 1
        assert end - begin == len(inside), "canonical rows keep their order in a parameter"
        offsets, sizes = [0] * len(shape), list(shape)
        offsets[0], sizes[0] = first + begin, end - begin
        if self.dim is not None and self.dim > 0:
            sizes[self.dim] //= share.size
            offsets[self.dim] = share.rank * sizes[self.dim]
        picked = rows[begin:end] - start
        consecutive = int(picked[-1]) - int(picked[0]) == len(picked) - 1
        where = slice(int(picked[0]), int(picked[-1]) + 1) if consecutive else picked
        return Section(name, shape, tuple(offsets), tuple(sizes), where)

    def _length(self, shape: Shape, share: TensorShare) -> int:
        return share.padded_rows(shape[0]) if self.dim == 0 else shape[0]

    def _slice(self, tensor: Tensor, share: TensorShare) -> Tensor:
        if self.dim is None or share.size == 1:
            return tensor
        start, end = share.rows(tensor.shape[self.dim])
        piece = tensor.narrow(self.dim, start, end - start)
        missing = share.padded_rows(tensor.shape[self.dim]) - (end - start)
        if not missing:
            return piece
        assert self.dim == 0, "only vocabularies are padded"
        return torch.cat((piece, piece.new_zeros(missing, *piece.shape[1:])))


@dataclass(frozen=True)
class Section:
    """Part of a canonical tensor, and the rows of a parameter that hold it."""

    name: str
    shape: Shape  # of the whole tensor
    offsets: Shape  # where the part begins in it
    sizes: Shape  # of the part
    rows: slice | Tensor  # of the rows that were asked for, in the part's order


class PipelineLayer(nn.Module):
    """One entry of the model's list of layers, with the canonical names of its parameters."""

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters, by their names in this layer; tied parameters belong to the first."""
        raise NotImplementedError

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """Cost of the layer with this `index` among its kind, for the given counts."""
        raise NotImplementedError


class LayeredModel(nn.Module):
    """A model as a list of pipeline layers, or the part of it that one rank holds."""

    architecture: Architecture
    share: TensorShare  # of each split tensor
    layers: nn.ModuleDict  # `PipelineLayer`s by their position in the whole list

    def __init__(self, architecture: Architecture, share: TensorShare) -> None:
        super().__init__()
        self.architecture = architecture
        self.share = share
        self.layers = nn.ModuleDict()


def parameter_views(model: LayeredModel) -> dict[str, ParameterView]:
    """The view of each parameter of this process's layers, by its name; tied tables once, under their first name."""
    views: dict[str, ParameterView] = {}
    for index, layer in model.layers.items():
        assert isinstance(layer, PipelineLayer)
        views.update({f"layers.{index}.{name}": view for name, view in layer.parameter_views().items()})
    names = [name for name, _ in model.named_parameters()]
    assert sorted(views) == sorted(names), sorted(set(views) ^ set(names))
    return {name: views[name] for name in names}


def canonical_shapes(model: LayeredModel, with_copies: bool = False) -> dict[str, Shape]:
    """Whole shape of every canonical tensor of this process's layers, by name.

    `with_copies` adds tied tables that belong to another pipeline stage and are copied here.
    """
    views = [view for view in parameter_views(model).values() if with_copies or not view.is_copy]
    return {name: shape for view in views for name, shape in zip(view.names, view.shapes, strict=True)}


def canonical_state(model: LayeredModel) -> dict[str, Tensor]:
    """Every parameter of a whole model under its canonical names, detached; may share memory with the model."""
    assert model.share.size == 1
    views = parameter_views(model)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state.update(views[name].split(parameter.detach()))
    return state


def load_canonical(model: LayeredModel, state: Mapping[str, Tensor]) -> None:
    """Copy whole canonical tensors into a model; a rank copies its part of them.

    Raises:
        UserError: names are missing or unknown, or a shape differs.
    """
    expected = canonical_shapes(model, with_copies=True)
    check_names_and_shapes(expected, {name: tuple(tensor.shape) for name, tensor in state.items()})
    copy_canonical(model, state)


def copy_canonical(model: LayeredModel, state: Mapping[str, Tensor]) -> None:
    """Copy the parameters of which `state` has all canonical tensors; leave the others unchanged."""
    views = parameter_views(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if all(part in state for part in views[name].names):
                parameter.copy_(views[name].join(state, model.share))


def check_names_and_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise a UserError that names missing and unknown tensors, and tensors of another shape."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown {_some(surplus)}"] * bool(surplus)
        raise UserError(
            f"parameters: the checkpoint {' and '.join(parts)}; it belongs to a model of another architecture"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(
                f"parameters: {name} has shape {list(found[name])}, the model needs {list(shape)};"
                " the checkpoint belongs to a model of another architecture"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
