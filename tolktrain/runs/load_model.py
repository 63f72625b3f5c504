"""A trained model out of a run's folder, for evaluation, generation and reports."""

import logging
from pathlib import Path
from typing import Any

from tolktrain.checkpoint.store import read_parameters, read_state
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import load_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.runs.listing import choose_checkpoint
from tolktrain.runs.paths import RunPaths

logger = logging.getLogger(__name__)


def load_model(run_dir: str | Path) -> tuple[SmolTolk, Config, dict[str, Any]]:
    """The model of the newest sound checkpoint (float32, on the CPU, ready to evaluate), the run's configuration, and
    the checkpoint's state.json.

    Raises UserError when the folder is not that of a run or has no sound checkpoint.
    """
    run_dir = Path(run_dir)
    file = RunPaths(run_dir).config
    if not file.is_file():
        raise UserError(f"{run_dir} is not the folder of a run: it has no {file.name}; train first")
    config = load_config(file)
    folder = choose_checkpoint(run_dir, warn=logger.warning)
    state = read_state(folder)
    # The checkpoint knows its own sizes; a backbone folder that the configuration names may be gone.
    model = SmolTolk(Architecture.from_dict(state["architecture"]), seed=None)
    load_canonical(model, read_parameters(folder))
    return model.eval(), config, state
