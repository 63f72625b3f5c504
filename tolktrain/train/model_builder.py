"""Builds each rank's part of the model, and its engine."""

from dataclasses import dataclass
from pathlib import Path

from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import PARAMETERS
from tolktrain.config import Config
from tolktrain.config.training import StageConfig
from tolktrain.interop.initial_weights import backbone_to_read, initialize_model
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import PipelineCut, cut_layers
from tolktrain.model.divisibility import check_tensor_parallel
from tolktrain.model.llama import backbone_folder
from tolktrain.model.parameter_layout import canonical_shapes, check_names_and_shapes, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.deepspeed.tensors import load_slices
from tolktrain.train.initial_weights import Beginning
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.resume import Position, shared_reader


@dataclass(frozen=True)
class ModelBuilder:
    """The architecture of a run's model, and its pipeline cut."""

    config: Config
    architecture: Architecture
    cut: PipelineCut | None  # None without a pipeline
    beginning: Beginning | None = None  # None for random weights, around a configured backbone

    @classmethod
    def of(cls, config: Config, architecture: Architecture | None = None) -> "ModelBuilder":
        """Check that `parallel` is compatible with the architecture, by default that of the configuration.

        Raises:
            UserError: the backbone cannot be read, or cannot be split this way.
        """
        architecture = architecture or Architecture.from_config(config.model)
        check_tensor_parallel(architecture, config.parallel, config.train.sequence_length)
        stages = config.parallel.pipeline_parallel_size
        cut = cut_layers(architecture, config.train.sequence_length, stages) if stages > 1 else None
        return cls(config, architecture, cut)

    def build(self, layout: Layout, folder: Path | None, settings: ResolvedSettings) -> SmolTolk:
        """This rank's part of the model: from the checkpoint `folder`, or from what the run begins with; collective.

        Under ZeRO 3, the checkpoint's values are not loaded here: `start` fills this rank's partition of each
        parameter. Memory that is never written is never allocated.
        """
        bounds = None
        if self.cut is not None:
            bounds = range(*self.cut.bounds[layout.pipeline_rank : layout.pipeline_rank + 2])
        if folder is not None:
            model = SmolTolk(self.architecture, None, layout, bounds)
            with shared_reader(folder, layout) as reader:
                _check(model, reader)
                if settings.deepspeed.zero_stage < 3:
                    load_slices(dict(model.named_parameters()), parameter_views(model), model.share, reader)
            return model
        return self._begin(layout, bounds)

    def _begin(self, layout: Layout, bounds: range | None) -> SmolTolk:
        """A new model: random weights, those of the configured backbone, and those of `checkpoint.init_from`, each in
        place of the ones before."""
        model = SmolTolk(self.architecture, None, layout, bounds)
        initial = None if self.beginning is None else self.beginning.weights_for(model, layout)
        backbone = backbone_to_read(model, self.config, initial)
        if backbone is not None and self.beginning is not None and layout.rank == 0:
            self.beginning.compare_tokenizer(backbone_folder(backbone, weights=True))
        initialize_model(model, self.config, initial)
        return model

    def start(
        self,
        model: SmolTolk,
        stage: StageConfig,
        layout: Layout,
        settings: ResolvedSettings,
        position: Position | None = None,
        is_inside: bool = False,
    ) -> Engine:
        """An engine for a stage; collective.

        Args:
            model: this rank's part.
            stage: of the recipe.
            layout: of this rank.
            settings: of the run.
            position: whose checkpoint the model was built from.
            is_inside: whether the checkpoint was written during this stage, so that its moments are used.
        """
        if position is None or position.folder is None:
            return Engine(model, stage, self.config, layout, settings, self.cut)
        with shared_reader(position.folder, layout) as reader:
            engine = Engine(model, stage, self.config, layout, settings, self.cut, reader)
            if is_inside:
                engine.restore_moments(reader, position.state["adam_updates"])
        return engine


def _check(model: SmolTolk, reader: CheckpointReader) -> None:
    expected = canonical_shapes(model, with_copies=True)
    found = reader.shapes(PARAMETERS)
    check_names_and_shapes(expected, {name: shape for name, shape in found.items() if name in expected})
