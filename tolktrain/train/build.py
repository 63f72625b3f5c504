"""Each rank's part of the model, and its engine."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from tolktrain.checkpoint.store import read_moments, read_parameters
from tolktrain.config import Config
from tolktrain.config.training import StageConfig
from tolktrain.interop.huggingface import load_backbone_into
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost import PipelineCut, cut_layers
from tolktrain.model.divisibility import check_tensor_parallel
from tolktrain.model.naming import canonical_shapes, load_canonical, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.engine import Engine
from tolktrain.train.resume import Position


@dataclass(frozen=True)
class Blueprint:
    """The model of a run, and how it is shared out."""

    config: Config
    architecture: Architecture
    cut: PipelineCut | None  # None without a pipeline

    @classmethod
    def of(cls, config: Config) -> "Blueprint":
        """Read the architecture and check that `parallel` goes with it.

        Raises:
            UserError: the backbone cannot be read, or not be shared out so.
        """
        architecture = Architecture.from_config(config.model)
        check_tensor_parallel(architecture, config.parallel, config.train.sequence_length)
        stages = config.parallel.pipeline_parallel_size
        cut = cut_layers(architecture, config.train.sequence_length, stages) if stages > 1 else None
        return cls(config, architecture, cut)

    def build(self, layout: Layout, folder: Path | None) -> SmolTolk:
        """This rank's part of the model: as the checkpoint `folder` has it, or new, on the configured backbone."""
        bounds = None
        if self.cut is not None:
            bounds = range(*self.cut.bounds[layout.pipeline_rank : layout.pipeline_rank + 2])
        if folder is not None:
            model = SmolTolk(self.architecture, None, layout, bounds)
            load_canonical(model, read_parameters(folder, canonical_shapes(model, with_copies=True)))
            return model
        backbone, seed = self.config.model.backbone, self.config.run.seed
        model = SmolTolk(self.architecture, seed, layout, bounds)
        if isinstance(backbone, str):
            load_backbone_into(model, backbone, seed)
        return model

    def start(self, model: SmolTolk, stage: StageConfig, layout: Layout) -> Engine:
        """An engine for the beginning of a stage; collective."""
        return Engine(model, stage, self.config, layout, self.cut)


def go_on_inside(engine: Engine, position: Position) -> None:
    """Give an engine the moments of a checkpoint from the middle of its stage; collective."""
    assert position.folder is not None
    names = canonical_shapes(engine.model, with_copies=True)
    engine.restore_moments(*read_moments(position.folder, names), position.state["adam_updates"])


def count_parameters(model: SmolTolk, layout: Layout) -> dict[str, int]:
    """Parameters of the whole model by group; collective."""
    mine: dict[str, int] = {}
    for view in parameter_views(model).values():
        if not view.is_copy:
            mine[view.group] = mine.get(view.group, 0) + sum(math.prod(shape) for shape in view.shapes)
    stages: list[dict[str, int]] = [{}] * layout.pipeline_size
    dist.all_gather_object(stages, mine, group=layout.pipeline_group)
    groups = dict.fromkeys(group for counts in stages for group in counts)
    return {group: sum(counts.get(group, 0) for counts in stages) for group in groups}
