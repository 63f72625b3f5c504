"""Canonical parameter names: plain, unfused, in Hugging Face style, the same in every layout.

Megatron keeps query, key and value in one matrix (interleaved by group) and gate and up in another. A `ParameterView`
says which canonical tensors a module's parameter holds and takes tensors of its shape (values, gradients, moments)
apart and together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from tolktrain.config.errors import UserError

if TYPE_CHECKING:
    from tolktrain.model.smoltolk import SmolTolk

ParameterGroup = Literal["backbone", "pooling", "speech"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterView:
    """The canonical tensors inside one parameter of the model."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    group: ParameterGroup
    decays: bool  # whether weight decay applies: matrices and tables, not norms, biases and layer weights
    interleaved: tuple[
        int, ...
    ] = ()  # heads that each name has in turn within one group; () if stored one after the other
    num_groups: int = 1

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Canonical tensors of a tensor shaped like the parameter. They may share its memory."""
        if len(self.names) == 1:
            return {self.names[0]: tensor}
        if not self.interleaved:
            pieces: Iterable[Tensor] = tensor.split([shape[0] for shape in self.shapes])
        else:
            heads = tensor.unflatten(0, (self.num_groups, sum(self.interleaved), -1))
            pieces = (piece.flatten(0, 2) for piece in heads.split(list(self.interleaved), dim=1))
        return dict(zip(self.names, pieces, strict=True))

    def join(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`; further entries of `pieces` are ignored."""
        tensors = [pieces[name] for name in self.names]
        if len(tensors) == 1:
            return tensors[0]
        if not self.interleaved:
            return torch.cat(tensors)
        parts = zip(tensors, self.interleaved, strict=True)
        heads = [tensor.unflatten(0, (self.num_groups, count, -1)) for tensor, count in parts]
        return torch.cat(heads, dim=1).flatten(0, 2)


class PipelineLayer(nn.Module):
    """One entry of the model's list of layers; it knows the canonical names of its parameters."""

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters, by their names in this layer; tied parameters belong to the first."""
        raise NotImplementedError


def parameter_views(model: "SmolTolk") -> dict[str, ParameterView]:
    """What each parameter of the model holds, by the parameter's name; tied tables once, under their first name."""
    views: dict[str, ParameterView] = {}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, PipelineLayer)
        views.update({f"layers.{index}.{name}": view for name, view in layer.parameter_views().items()})
    names = [name for name, _ in model.named_parameters()]
    assert sorted(views) == sorted(names), sorted(set(views) ^ set(names))
    return {name: views[name] for name in names}


def canonical_shapes(model: "SmolTolk") -> dict[str, Shape]:
    """Shape of every canonical tensor, by name."""
    views = parameter_views(model).values()
    return {name: shape for view in views for name, shape in zip(view.names, view.shapes, strict=True)}


def canonical_state(model: "SmolTolk") -> dict[str, Tensor]:
    """Every parameter under its canonical names, detached; the tensors may share memory with the model."""
    views = parameter_views(model)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state.update(views[name].split(parameter.detach()))
    return state


def load_canonical(model: "SmolTolk", state: Mapping[str, Tensor]) -> None:
    """Copy canonical tensors into the model.

    Raises:
        UserError: names are missing or surplus, or a shape differs.
    """
    check_names_and_shapes(canonical_shapes(model), {name: tuple(tensor.shape) for name, tensor in state.items()})
    copy_canonical(model, state)


def copy_canonical(model: "SmolTolk", state: Mapping[str, Tensor]) -> None:
    """Copy those parameters of which `state` has every part; the others stay as they are."""
    views = parameter_views(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if all(part in state for part in views[name].names):
                parameter.copy_(views[name].join(state))


def check_names_and_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise a UserError that names what is missing, surplus, or of another shape."""
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
