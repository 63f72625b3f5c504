"""Loads the trained model of a run, for evaluation, generation and reports."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tolktrain.checkpoint.store import read_parameters, read_state
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import load_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.listing import choose_checkpoint
from tolktrain.runs.paths import RunPaths

logger = logging.getLogger(__name__)


def load_model(
    run_dir: str | Path,
    step: int | None = None,
    layout: Layout | None = None,
    check: Callable[[Architecture], None] = lambda architecture: None,
) -> tuple[SmolTolk, Config, dict[str, Any]]:
    """The model of the latest valid checkpoint, or of that of `step` (float32, on the CPU, in evaluation mode), the
    run's configuration, and the checkpoint's state.json.

    With a layout, this rank's part of the model; `check` is called with the architecture before the model is built.

    Raises UserError if `run_dir` is not a run directory or has no such valid checkpoint.
    """
    run_dir = Path(run_dir)
    file = RunPaths(run_dir).config
    if not file.is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no {file.name}; train first")
    config = load_config(file)
    folder = choose_checkpoint(run_dir, step, warn=logger.warning)
    state = read_state(folder)
    # The checkpoint contains the architecture; the backbone folder in the configuration may not exist any more.
    architecture = Architecture.from_dict(state["architecture"])
    check(architecture)
    model = SmolTolk(architecture, None, layout)
    load_canonical(model, read_parameters(folder))
    return model.eval(), config, state
