"""The model with which a run has begun."""

from collections.abc import Mapping
from pathlib import Path

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.interop.formats.find import describe_weights
from tolktrain.interop.initial_weights import KEY, InitialWeights, backbone_to_read, initialize_model
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.runs.initial_weights import read_record
from tolktrain.runs.paths import RunPaths


def starting_model(
    run_dir: Path, config: Config, architecture: Architecture, tokenizers: Mapping[str, str | None]
) -> tuple[SmolTolk, str]:
    """The model before the first step (float32, on the CPU, in evaluation mode), and where its weights are from.

    Args:
        run_dir: of the run, which records the trained weights that it has begun from.
        config: of the run.
        architecture: of its checkpoints.
        tokenizers: of the data.

    Raises:
        UserError: the backbone or the initial weights are gone, or have changed.
    """
    record = read_record(RunPaths(run_dir).initial_weights)
    model = SmolTolk(architecture, None)
    initial = None
    sources: list[str] = []
    if record is not None:
        weights = describe_weights(Path(record.folder), KEY)
        if weights.digest != record.digest:
            raise UserError(f"{KEY}: {record.folder} has changed since the run has begun from it")
        initial = InitialWeights.of(weights, model, initialize(), config, tokenizers)
        sources.append(record.folder)
    backbone = backbone_to_read(model, config, initial)
    sources += [backbone] if backbone is not None else []
    initialize_model(model, config, initial)
    sources.append(f"{'otherwise ' if sources else ''}random weights of seed {config.run.seed}")
    return model.eval(), ", ".join(sources)
