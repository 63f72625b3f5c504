"""The weights that a model begins from: random ones, those of a backbone, and trained ones (`checkpoint.init_from`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.interop.finite import non_finite
from tolktrain.interop.fitting import Fit, Taken, fit_weights, merged, refusal, table_of
from tolktrain.interop.formats.find import open_weights
from tolktrain.interop.formats.format import Weights, WeightsReader
from tolktrain.interop.huggingface import backbone_names, load_backbone_into
from tolktrain.model.initialization import initialize_parameters
from tolktrain.model.parameter_layout import Section, Shape, canonical_shapes, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.initial_weights import InitialWeightsRecord

KEY = "checkpoint.init_from"
_MEAN_ROWS = 8192  # of a table, read at a time


@dataclass(frozen=True)
class InitialWeights:
    """Trained weights, and what a rank's part of the model takes from them."""

    weights: Weights
    own: Fit  # of this rank's tensors
    fit: Fit  # of the whole model
    shapes: Mapping[str, Shape]  # of the whole model

    @classmethod
    def of(
        cls, weights: Weights, model: SmolTolk, layout: Layout, config: Config, tokenizers: Mapping[str, str | None]
    ) -> "InitialWeights":
        """Compare weights with a model; collective.

        Raises UserError, on all ranks, with the tensors and sizes that do not fit.
        """
        shapes = canonical_shapes(model, with_copies=True)
        own = fit_weights(weights, shapes, model.architecture, tokenizers, config.checkpoint.init_tables)
        parts = [(own, shapes)]
        if layout.pipeline_size > 1:
            parts *= layout.pipeline_size
            dist.all_gather_object(parts, (own, shapes), group=layout.pipeline_group)
        fit = merged([part for part, _ in parts])
        if fit.misfits:
            raise UserError(f"{KEY}: {refusal(fit, weights)}")
        return cls(weights, own, fit, {name: shape for _, some in parts for name, shape in some.items()})

    def fill(self, model: SmolTolk) -> None:
        """Copy what is taken into this rank's part of a model, whose other values are set already.

        One parameter after the other; a tensor-parallel rank reads its part only.
        """
        parameters = dict(model.named_parameters())
        with open_weights(self.weights) as reader, torch.no_grad():
            for key, view in parameter_views(model).items():
                found = {name: self.own.taken[name] for name in view.names if name in self.own.taken}
                if not found:
                    continue
                parameter, whole = parameters[key], self.own.whole.issuperset(view.names)
                # Nothing has initialized a parameter that is taken completely; its padding is zero.
                rows = torch.zeros_like(parameter) if whole else parameter.detach().clone()
                rows = rows.view(-1, *parameter.shape[1:])
                means = {name: self._mean(taken, reader) for name, taken in found.items() if taken.averaged}
                for section in view.sections(model.share, 0, len(rows)):
                    if section.name in found:
                        self._fill_section(rows, section, found[section.name], reader, means.get(section.name))
                parameter.copy_(rows.view(parameter.shape))

    def describe(self) -> list[str]:
        """Where the weights come from, and what was taken; lines for the terminal and the log."""
        weights = self.weights
        step = "" if weights.step is None else f"step {weights.step}, "
        return [
            f"initial weights: {weights.folder} ({step}sha256 {weights.digest[:12]})",
            *(f"  {line}" for line in table_of(self.fit, self.shapes)),
        ]

    def record(self, init_from: str) -> InitialWeightsRecord:
        """For the run directory."""
        weights, fit = self.weights, self.fit
        partly = [name for name in fit.taken if name not in fit.whole]
        return InitialWeightsRecord(
            init_from=init_from,
            folder=str(weights.folder),
            format=weights.format,
            step=weights.step,
            stage=weights.stage,
            digest=weights.digest,
            taken=sorted(fit.whole),
            taken_in_part=sorted(partly),
            new=sorted(set(fit.new) - set(partly)),
            unused=list(fit.unused),
        )

    def _mean(self, taken: Taken, reader: WeightsReader) -> Tensor:
        """The mean [D] of the first rows that are taken. Summed in double precision, so that each rank has the same."""
        assert taken.rows is not None
        first = taken.rows[0]
        width = self.weights.shapes[taken.source][1]
        total = torch.zeros(width, dtype=torch.float64)
        for begin in range(first.source_begin, first.source_begin + first.num_rows, _MEAN_ROWS):
            count = min(_MEAN_ROWS, first.source_begin + first.num_rows - begin)
            total += self._block(reader, taken.source, (begin, 0), (count, width)).double().sum(dim=0)
        return (total / first.num_rows).float()

    def _fill_section(
        self, rows: Tensor, section: Section, taken: Taken, reader: WeightsReader, mean: Tensor | None
    ) -> None:
        """Copy the part of a tensor that is a section of a parameter into the parameter's rows."""
        if taken.rows is None:
            block = self._block(reader, taken.source, section.offsets, section.sizes)
            rows[section.rows] = block.view(-1, *rows.shape[1:])
            return
        begin, end = section.offsets[0], section.offsets[0] + section.sizes[0]
        target = rows[section.rows]
        for part in taken.rows:
            first, last = max(begin, part.begin), min(end, part.begin + part.num_rows)
            if first < last:
                offsets = (part.source_begin + first - part.begin, *section.offsets[1:])
                block = self._block(reader, taken.source, offsets, (last - first, *section.sizes[1:]))
                target[first - begin : last - begin] = block
        if mean is not None:
            for row in taken.averaged:
                if begin <= row < end:
                    target[row - begin] = mean
        rows[section.rows] = target

    def _block(self, reader: WeightsReader, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        block = reader.block(name, offsets, sizes).float()
        problem = non_finite(block)
        if problem is not None:
            raise UserError(
                f"{KEY}: {name} in {self.weights.folder} {problem}; take an earlier checkpoint of the run, from before"
                " it diverged"
            )
        return block


def backbone_to_read(model: SmolTolk, config: Config, initial: InitialWeights | None) -> str | None:
    """The configured backbone, None if there is none or all of its weights come from the initial ones."""
    backbone = config.model.backbone
    taken = set() if initial is None else initial.own.whole
    return backbone if isinstance(backbone, str) and not taken.issuperset(backbone_names(model)) else None


def initialize_model(model: SmolTolk, config: Config, initial: InitialWeights | None) -> None:
    """Set all parameters of an uninitialized model, or of this rank's part of it: random weights, those of the
    configured backbone, and the initial ones, each in place of the ones before.

    Raises:
        UserError: the backbone or the initial weights cannot be read.
    """
    initialize_parameters(model, config.run.seed, skip=set() if initial is None else initial.own.whole)
    backbone = backbone_to_read(model, config, initial)
    if backbone is not None:
        load_backbone_into(model, backbone, config.run.seed)
    if initial is not None:
        initial.fill(model)
