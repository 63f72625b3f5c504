"""Loads a trained model for evaluation and generation: of a run, or of a folder of weights."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tolktrain.config import Config
from tolktrain.config.load import config_of
from tolktrain.errors import UserError
from tolktrain.interop.folder_settings import voice_in
from tolktrain.interop.tokenizer_files import tokenizers_in
from tolktrain.interop.weights import OpenWeights, build_model, is_weights, open_exported
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.load_model import load_model
from tolktrain.units.vocoders.description import VOCODER_FILE

_DEFAULT_LENGTH = 2048  # positions, if the weights do not record the length of their training sequences
_MICRO_BATCH = 4
_NO_SET = "none"


def load_trained(
    source: str | Path,
    step: int | None = None,
    overrides: Sequence[str] = (),
    layout: Layout | None = None,
    check: Callable[[Architecture], None] = lambda architecture: None,
) -> tuple[SmolTolk, Config, dict[str, Any]]:
    """The model of a run or of a folder of weights (float32, on the CPU, in evaluation mode), its configuration, and
    what is known of its training.

    A folder of weights has a configuration with its own tokenizers and without data; `overrides` such as
    `data.sets.held.path=...` and `evaluation.heldout_sets=[held]` add data and other settings.

    Args:
        source: run directory, or a folder that `tolktrain export` or `tolktrain import` has written.
        step: of the checkpoint of a run.
        overrides: of the configuration of a folder of weights; a run has its own.
        layout: of the ranks, each of which builds its part of the model; a single process if None.
        check: called with the architecture before the model is built.

    Raises:
        UserError: there is no such model, or an override is wrong.
    """
    source = Path(source)
    if not is_weights(source):
        assert not overrides, "the command line refuses overrides for a run"
        return load_model(source, step, layout, check)
    if step is not None:
        raise UserError(f"{source} is a folder of weights; give --step with a run directory only")
    with open_exported(source) as weights:
        config = _configuration(source, weights, overrides)
        check(weights.architecture)
        return build_model(weights, layout).eval(), config, dict(weights.state)


def _configuration(folder: Path, weights: OpenWeights, overrides: Sequence[str]) -> Config:
    architecture = weights.architecture
    text, speech = tokenizers_in(folder.resolve())
    has_vocoder = speech is not None and (Path(speech) / VOCODER_FILE).is_file()
    has_other = any(one.startswith("data.vocoder.path=") for one in overrides)  # which has other voices
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "weights"
    # A configuration has a stage at least, and a stage a data set; both are removed again below.
    stage = {"name": "none", "tokens": 1, "mixture": {"text": {"sets": {_NO_SET: 1}}}, "learning_rate": 1.0}
    tree = {
        "run": {"name": name, "dir": str(folder.resolve().parent)},
        "model": {
            "backbone": str(folder.resolve()),
            "speech": {
                "num_units": architecture.num_units,
                "num_codebooks": architecture.num_codebooks,
                "input_adapter_layers": architecture.input_adapter_layers,
                "output_adapter_layers": architecture.output_adapter_layers,
                "layer_pooling": architecture.layer_pooling,
                "residual": architecture.residual,
            },
            "special_tokens": architecture.special_tokens,
        },
        "data": {
            "sets": {_NO_SET: {"path": str(folder.resolve())}},
            "text_tokenizer": text,
            "speech_tokenizer": speech,
            "vocoder": asdict(voice_in(folder)) if has_vocoder and not has_other else {},
        },
        "train": {
            "stages": [stage],
            "global_batch_size": _MICRO_BATCH,
            "micro_batch_size": _MICRO_BATCH,
            "sequence_length": weights.sequence_length or _DEFAULT_LENGTH,
            "precision": "fp32",
        },
    }
    config = config_of(tree, overrides, folder)
    sets = {name: entry for name, entry in config.data.sets.items() if name != _NO_SET}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"sets": sets}),
            "train": config.train.model_copy(update={"stages": ()}),
        }
    )
