"""Saves and restores the parameters and moments of an engine, as slices of canonical tensors.

Each rank writes its ZeRO partition, extended to whole rows (see `row_ends`), and reads the elements that it holds;
tensors that are replicated on the data ranks are divided among them. A rank needs memory for its own part, plus a copy
of one parameter of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tolktrain.checkpoint.slices import FIRST_MOMENTS, PARAMETERS, SECOND_MOMENTS, Slice, Snapshot, Source
from tolktrain.model.parameter_layout import ParameterView, Section, TensorShare
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.row_ends import RowEnd, exchange, plan_row_ends
from tolktrain.train.deepspeed.states import FIRST_MOMENT, SECOND_MOMENT, OptimizerStates

MOMENTS = {FIRST_MOMENTS: FIRST_MOMENT, SECOND_MOMENTS: SECOND_MOMENT}

Rows = Callable[[str, int, int], Tensor]
"""Returns rows (from, to) of a parameter by its name in the model, float32."""


@dataclass(frozen=True)
class Part:
    """Rows of a parameter that this rank writes."""

    start: int
    stop: int
    sections: tuple[Section, ...]


class UnknownSlicingError(RuntimeError):
    """The slicing of a parameter is not known. Training may continue, but nothing may be saved."""


class ModelTensors:
    """The tensors of one stage's model. Created before the first step."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        views: Mapping[str, ParameterView],
        share: TensorShare,
        states: OptimizerStates,
        layout: Layout,
    ) -> None:
        self._parameters = parameters
        self._views = views
        self._share = share
        self._states = states
        self._layout = layout
        # Float32 rows of frozen parameters that were rounded, sliced as in `_parts`.
        self._frozen: dict[str, Tensor] = {}

    def set_values(self, rows: Rows, fill: bool = False) -> None:
        """Set master weights to the float32 values of the model before rounding, and keep those of rounded frozen
        parameters for checkpoints. With `fill`, also set the partitions in the modules under ZeRO 3."""
        for name, parameter in self._parameters.items():
            if fill:
                held = self._flat(name, rows, *self._states.held_range(parameter))
                self._states.write_held(parameter, held)
                if parameter.requires_grad:
                    self._states.write_own(parameter, held)
            elif parameter.requires_grad:
                self._write_own(name, rows, None)
            if not parameter.requires_grad and name in self._parts and parameter.dtype != torch.float32:
                part = self._parts[name]
                self._frozen[name] = rows(name, part.start, part.stop).to("cpu", torch.float32, copy=True)

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        """This rank's slices, copied to the CPU, into the memory of `reuse` if given; collective.

        Raises UnknownSlicingError if a parameter is not sliced as its view says.
        """
        result = reuse or Snapshot()
        parts, ends = self._parts, self._fetch_row_ends()
        for name, part in parts.items():
            for kind, state in self._kinds(name).items():
                self._take(result.kinds()[kind], name, part, state, ends.get((name, state), []))
        if self._layout.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def restore_moments(self, source: Source) -> None:
        """Restore the moments of a checkpoint of this stage."""
        for kind, state in MOMENTS.items():

            def rows(name: str, start: int, stop: int, kind: str = kind) -> Tensor:
                return read_rows(source, kind, self._views[name], self._share, start, stop)

            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    self._write_own(name, rows, state)

    def _write_own(self, name: str, rows: Rows, state: str | None) -> None:
        """Set this rank's elements of a master weight or moment, from whole rows."""
        parameter = self._parameters[name]
        own = self._states.own_range(parameter)
        start, stop = (0, math.prod(self._states.shape(parameter))) if own is None else own
        if start < stop or self._states.splits_modules:
            self._states.write_own(parameter, self._flat(name, rows, start, stop), state)

    def _flat(self, name: str, rows: Rows, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a parameter, from whole rows."""
        if start == stop:
            return torch.zeros(0)
        width = math.prod(self._states.shape(self._parameters[name])[1:])
        first, last = start // width, -(-stop // width)
        return rows(name, first, last).flatten()[start - first * width : stop - first * width]

    def _take(self, slices: dict[str, Slice], name: str, part: Part, state: str | None, ends: Sequence[Tensor]) -> None:
        """Copy a parameter's sections, or those of its moment, into `slices`."""
        rows = self._rows(name, part, state, ends)
        for section in part.sections:
            block = rows[section.rows].view(section.sizes)
            if section.name not in slices:
                memory = torch.empty(section.sizes, dtype=torch.float32, pin_memory=rows.device.type == "cuda")
                slices[section.name] = Slice(memory, section.offsets, section.shape)
            slices[section.name].tensor.copy_(block, non_blocking=True)

    def _rows(self, name: str, part: Part, state: str | None, ends: Sequence[Tensor]) -> Tensor:
        """The rows of a part, float32, in two dimensions or more; `ends` are other ranks' elements of the last row."""
        shape = self._states.shape(self._parameters[name]) or (1,)
        if name in self._frozen:
            return self._frozen[name].view(-1, *shape[1:])
        begin, _ = self._span(name) or (0, 0)
        width = math.prod(shape[1:])
        own = self._own(name, state)[part.start * width - begin : part.stop * width - begin].float()
        flat = torch.cat([own, *(end.to(own.device) for end in ends)]) if ends else own
        return flat.view(-1, *shape[1:])

    def _kinds(self, name: str) -> dict[str, str | None]:
        """The stored kinds of a parameter, and their names in the optimizer."""
        return {PARAMETERS: None, **(MOMENTS if self._parameters[name].requires_grad else {})}

    def _own(self, name: str, state: str | None) -> Tensor:
        """This rank's elements of a parameter or its moment, flat."""
        parameter = self._parameters[name]
        return self._states.own(parameter, state) if parameter.requires_grad else self._states.held(parameter)

    def _fetch_row_ends(self) -> dict[tuple[str, str | None], list[Tensor]]:
        """The row ends on other ranks that this rank writes, by name and state; collective."""
        names, rank = list(self._parameters), self._layout.data_rank
        outgoing: dict[int, list[Tensor]] = {}
        sizes: dict[int, list[int]] = {}
        coming: list[tuple[int, tuple[str, str | None]]] = []
        for end in self._row_ends:
            name = names[end.parameter]
            for state in self._kinds(name).values():
                if end.source == rank:
                    begin, _ = self._span(name) or (0, 0)
                    part = self._own(name, state)[end.start - begin : end.stop - begin]
                    outgoing.setdefault(end.target, []).append(part)
                else:
                    sizes.setdefault(end.source, []).append(end.stop - end.start)
                    coming.append((end.source, (name, state)))
        found = {source: iter(parts) for source, parts in exchange(outgoing, sizes, self._layout.data_group).items()}
        ends: dict[tuple[str, str | None], list[Tensor]] = {}
        for source, key in coming:
            ends.setdefault(key, []).append(next(found[source]))
        return ends

    @cached_property
    def _row_ends(self) -> list[RowEnd]:
        """The row ends that this rank sends and receives at each snapshot; the first call is collective."""
        spans = [None if self._is_elsewhere(name) else self._span(name) for name in self._parameters]
        if not any(span is not None for span in spans):  # on all data ranks alike
            return []
        widths = [math.prod(self._states.shape(parameter)[1:]) for parameter in self._parameters.values()]
        mine = torch.tensor([span or (0, 0) for span in spans])
        everyone = [torch.empty_like(mine) for _ in range(self._layout.data_size)]
        dist.all_gather(everyone, mine, group=self._layout.data_group)
        return plan_row_ends(torch.stack(everyone), widths, self._layout.data_rank)

    @cached_property
    def _parts(self) -> dict[str, Part]:
        """The rows of each parameter that this rank writes."""
        for name, parameter in self._parameters.items():
            self._check(name, parameter)
        shared = self._sharded()
        parts: dict[str, Part] = {}
        for name, parameter in self._parameters.items():
            if self._is_elsewhere(name):
                continue
            width = math.prod(self._states.shape(parameter)[1:])
            own = self._span(name)
            start, stop = shared[name] if own is None else own
            begin, end = -(-start // width), -(-stop // width)
            sections = tuple(self._views[name].sections(self._share, begin, end))
            if sections:
                parts[name] = Part(begin, end, sections)
        return parts

    def _span(self, name: str) -> tuple[int, int] | None:
        """The elements of a parameter in this data rank's partition; None if each rank has all elements."""
        parameter = self._parameters[name]
        if not parameter.requires_grad and self._states.splits_modules:
            return self._states.held_range(parameter)
        return self._states.own_range(parameter)

    def _sharded(self) -> dict[str, tuple[int, int]]:
        """Elements that this data rank writes of replicated parameters: their concatenation is divided evenly."""
        sizes = {
            name: math.prod(self._states.shape(parameter))
            for name, parameter in self._parameters.items()
            if self._span(name) is None and not self._is_elsewhere(name)
        }
        total, rank, size = sum(sizes.values()), self._layout.data_rank, self._layout.data_size
        first, last = total * rank // size, total * (rank + 1) // size
        result = {name: (0, 0) for name in self._parameters}
        position = 0
        for name, count in sizes.items():
            begin, end = max(first - position, 0), min(last - position, count)
            result[name] = (begin, end) if begin < end else (0, 0)
            position += count
        return result

    def _is_elsewhere(self, name: str) -> bool:
        """Whether another pipeline stage or tensor rank writes this replicated parameter."""
        view = self._views[name]
        return view.is_copy or (view.dim is None and self._share.rank > 0)

    def _check(self, name: str, parameter: nn.Parameter) -> None:
        """Check that view and module agree about the slicing: a wrong slice would be saved silently."""
        view = self._views.get(name)
        if view is None:
            raise UnknownSlicingError(f"parameter {name}: no canonical name is known for it; nothing can be saved")
        shape, expected = self._states.shape(parameter), view.local_shape(self._share)
        dim = getattr(parameter, "partition_dim", None)  # megatron-core's, -1 where it is not sharded
        if self._share.size > 1 and dim is not None and dim != (-1 if view.dim is None else view.dim):
            raise UnknownSlicingError(
                f"parameter {name}: its module splits dimension {dim}, its canonical view dimension {view.dim};"
                " nothing can be saved"
            )
        if shape != expected:
            raise UnknownSlicingError(
                f"parameter {name}: has shape {list(shape)} on this rank, its canonical view gives {list(expected)};"
                " nothing can be saved"
            )


def read_rows(source: Source, kind: str, view: ParameterView, share: TensorShare, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of a rank's parameter from canonical tensors, float32 on the CPU; padding is zero."""
    shape = view.local_shape(share) or (1,)
    rows = torch.zeros(stop - start, *shape[1:])
    for section in view.sections(share, start, stop):
        rows[section.rows] = source.read(kind, section.name, section.offsets, section.sizes).view(-1, *rows.shape[1:])
    return rows


def load_slices(
    parameters: Mapping[str, nn.Parameter], views: Mapping[str, ParameterView], share: TensorShare, source: Source
) -> None:
    """Fill a rank's parameters from canonical tensors, one after the other."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            view = views[name]
            parameter.copy_(read_rows(source, PARAMETERS, view, share, 0, view.num_rows(share)).view(parameter.shape))


def original_rows(model: SmolTolk, views: Mapping[str, ParameterView], source: Source | None) -> Rows:
    """Float32 values of a model before it is rounded: from its checkpoint if there is one, otherwise copies."""
    if source is not None:
        return lambda name, start, stop: read_rows(source, PARAMETERS, views[name], model.share, start, stop)
    copies = {name: value.detach().cpu().clone() for name, value in model.named_parameters()}

    def rows(name: str, start: int, stop: int) -> Tensor:
        value = copies[name]
        return (value if value.dim() else value.view(1))[start:stop]

    return rows


def forget_values(model: SmolTolk, dtype: torch.dtype) -> None:
    """Change the type of parameters without converting values, which would allocate memory for all of them."""
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtype)
