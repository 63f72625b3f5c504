"""Begins a run from trained weights (`checkpoint.init_from`)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.config import Config
from tolktrain.data.checks import TEXT_TOKENIZER_FILE
from tolktrain.errors import UserError
from tolktrain.files.reading import file_sha256
from tolktrain.interop.finite import non_finite
from tolktrain.interop.fitting import Fit, Taken, fit_weights, merged, refusal, table_of
from tolktrain.interop.formats.find import describe_weights, open_weights
from tolktrain.interop.formats.format import Weights, WeightsReader
from tolktrain.model.parameter_layout import Section, Shape, canonical_shapes, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.initial_weights import InitialWeightsRecord, read_record, write_record
from tolktrain.runs.paths import RunPaths

KEY = "checkpoint.init_from"

logger = logging.getLogger(__name__)


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
                for section in view.sections(model.share, 0, len(rows)):
                    if section.name in found:
                        self._fill_section(rows, section, found[section.name], reader)
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

    def _fill_section(self, rows: Tensor, section: Section, taken: Taken, reader: WeightsReader) -> None:
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


class Beginning:
    """How a run begins, unless it continues from a checkpoint of its own."""

    def __init__(self, config: Config, run_dir: Path, tokenizers: Mapping[str, str | None], is_new: bool) -> None:
        """`tokenizers` are those of the data; `is_new` says that a record of an earlier start does not count."""
        self._config = config
        self._paths = RunPaths(run_dir)
        self._tokenizers = tokenizers
        self._is_new = is_new
        self._taken: InitialWeights | None = None

    @property
    def lines(self) -> list[str]:
        """What the run begins from, for the terminal; empty for random weights and a resumed run."""
        return [] if self._taken is None else self._taken.describe()

    def compare_tokenizer(self, backbone: Path) -> None:
        """Warn if the tokenizer in the folder of a backbone is not that of the data."""
        file, expected = backbone / TEXT_TOKENIZER_FILE, self._tokenizers.get("text")
        if expected is None or not file.is_file():
            return
        found = file_sha256(file)
        if found != expected:
            logger.warning(
                "model.backbone: %s (sha256 %s) is not the tokenizer that the data was made with (sha256 %s): if it"
                " gives texts other ids, the backbone reads the data as noise; prepare the data with this tokenizer",
                file, found, expected,
            )  # fmt: skip

    def weights_for(self, model: SmolTolk, layout: Layout) -> InitialWeights | None:
        """The weights that this model begins from; None for random ones. Collective.

        Raises UserError if there are no such weights, they are damaged, or they do not fit.
        """
        weights = on_rank_zero(layout.rank, self._find)
        if weights is None:
            return None
        self._taken = InitialWeights.of(weights, model, layout, self._config, self._tokenizers)
        for line in self._taken.describe():
            logger.info("%s", line)
        for note in self._taken.fit.notes:
            logger.warning("%s: %s", KEY, note)
        return self._taken

    def write(self) -> None:
        """Record in the run directory what the run has begun from; on rank 0, after `OpenRun.begin`."""
        configured = self._configured()
        if self._taken is not None:
            assert configured is not None
            write_record(self._paths.initial_weights, self._taken.record(configured))
        elif self._is_new:
            self._paths.initial_weights.unlink(missing_ok=True)
        self._is_new = False

    def _configured(self) -> str | None:
        """The folder that the run begins from: as configured now, or, if the key was dropped, at its first start."""
        if self._config.checkpoint.init_from is not None:
            return self._config.checkpoint.init_from
        record = self._record()
        return None if record is None else record.init_from

    def _record(self) -> InitialWeightsRecord | None:
        return None if self._is_new else read_record(self._paths.initial_weights)

    def _find(self) -> Weights | None:
        configured, record = self._configured(), self._record()
        if configured is None:
            return None
        if Path(configured).resolve().is_relative_to(self._paths.root.resolve()):
            raise UserError(
                f"{KEY} names {configured}, which is in the run directory of this run; give this run another run.name"
            )
        if record is not None and record.init_from == configured:
            # A run may have newer checkpoints by now; an interrupted start begins from the same one again.
            if Path(record.folder).is_dir():
                return describe_weights(Path(record.folder), KEY)
            logger.warning(
                "%s: %s, from which the run had begun, is gone; it begins from %s again",
                KEY, record.folder, configured,
            )  # fmt: skip
        return describe_weights(Path(configured), KEY)


def refuse_other_beginning(config: Config, run_dir: Path, layout: Layout) -> None:
    """Refuse `checkpoint.init_from` for a run that has checkpoints, unless the run has begun from these weights.

    Collective. Such a run continues from its own checkpoints, and the key would silently have no effect.

    Raises UserError.
    """
    asked = config.checkpoint.init_from

    def check() -> None:
        record = read_record(RunPaths(run_dir).initial_weights)
        if asked is None or (record is not None and record.init_from == asked):
            return
        if record is not None and describe_weights(Path(asked), KEY).digest == record.digest:  # it was moved
            return
        before = "random weights or a backbone" if record is None else record.init_from
        raise UserError(
            f"{KEY} is {asked}, but {run_dir} has begun from {before} and continues from its own checkpoints; remove"
            f" {KEY}, give a new run another run.name, or start again from step 0 with run.restart=true"
        )

    on_rank_zero(layout.rank, check)
