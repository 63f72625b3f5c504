"""Loads a model and its text tokenizer: of a run, a checkpoint, exported weights, or a Llama checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tolktrain.checkpoint.store import read_parameters, read_state
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.text_tokenizer import TOKENIZER_FILE, TextTokenizer, bos_id, load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.evaluate.text.language_model import TextModel
from tolktrain.files.reading import read_json
from tolktrain.interop import trained
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.huggingface import load_backbone
from tolktrain.interop.weights import ARCHITECTURE, checkpoint_of, is_checkpoint, is_weights, load_weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.llama import backbone_folder
from tolktrain.model.parameter_layout import load_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.runs.paths import RunPaths

_CONTEXT = 2048  # of weights that do not say how long their context is

logger = logging.getLogger(__name__)


def load_own(folder: Path, overrides: Sequence[str] = ()) -> tuple[TextModel, int]:
    """The model that is evaluated, of a run or of a folder of weights with `overrides` (`interop.trained`), and the
    positions of its micro batch.

    Raises UserError if there is none, or no text tokenizer, or another one than it was trained with.
    """
    if not is_weights(folder):
        train = load_config(RunPaths(folder).config).train
        return load_trained(folder), train.micro_batch_size * train.sequence_length
    model, config, state = trained.load_trained(folder, overrides=overrides)
    found = _tokenizer(config, folder, state)
    context = config.train.sequence_length
    name = config.data.text_tokenizer or folder
    shown = _text_model(config.run.name, model, found.tokenizer, found.info.eos_id, name, context)
    return shown, config.train.micro_batch_size * context


def load_trained(folder: Path) -> TextModel:
    """The model of a run's latest valid checkpoint, or of a checkpoint of a run.

    Raises UserError if there is none, or the run names no text tokenizer or another one than it was trained with.
    """
    checkpoint = checkpoint_of(folder, None, logger.warning)
    config = ExportSource.of(checkpoint).config
    if config is None:
        raise UserError(f"{folder} is in no run directory, whose configuration names the text tokenizer; name the run")
    state = read_state(checkpoint)
    found = _tokenizer(config, folder, state)
    model = SmolTolk(Architecture.from_dict(state["architecture"]), seed=None)
    load_canonical(model, read_parameters(checkpoint))
    name = config.data.text_tokenizer or folder
    shown = f"{config.run.name}, step {state.get('step')}"
    return _text_model(shown, model, found.tokenizer, found.info.eos_id, name, config.train.sequence_length)


def load_other(path: str, of_run: TextModel) -> TextModel:
    """The model of a run, a checkpoint, exported weights, a Llama checkpoint in a folder, or a hub id.

    If a folder of weights has no tokenizer, the run's is used.

    Raises UserError if it is none of these.
    """
    folder = Path(path)
    if is_checkpoint(folder) or RunPaths(folder).config.is_file():
        return load_trained(folder)
    if (folder / ARCHITECTURE).is_file():
        model, context = load_weights(folder), of_run.context
    else:
        try:
            folder = backbone_folder(path, weights=True)
            model = load_backbone(str(folder))
        except UserError as error:
            raise UserError(f"--against: {str(error).removeprefix('model.backbone: ')}") from None
        context = int(read_json(folder / "config.json").get("max_position_embeddings") or _CONTEXT)
    if not (folder / TOKENIZER_FILE).is_file():
        return TextModel(path, model, of_run.tokenizer, of_run.eos_id, of_run.prefix_id, context)
    found = load_text_tokenizer(folder)
    return _text_model(path, model, found.tokenizer, found.info.eos_id, folder, context)


def _tokenizer(config: Config, folder: Path, state: Mapping[str, Any]) -> TextTokenizer:
    name = config.data.text_tokenizer
    if name is None:
        raise UserError(f"{folder}: data.text_tokenizer is not set; text tasks need the model's tokenizer")
    found = load_text_tokenizer(name)
    trained_with = (state.get("tokenizers") or {}).get("text")
    if trained_with is not None and trained_with != found.info.sha256:
        raise UserError(
            f"data.text_tokenizer: {name} is not the tokenizer that {folder} was trained with; name that one in"
            f" {RunPaths(Path(config.run.dir) / config.run.name).config}"
        )
    return found


def _text_model(
    name: str, model: SmolTolk, tokenizer: Tokenizer, eos_id: int, folder: str | Path, context: int
) -> TextModel:
    bos = bos_id(folder, tokenizer)
    return TextModel(name, model, tokenizer, eos_id, eos_id if bos is None else bos, context)
