"""The kind of preparation that a configuration asks for, and the tokenizers it uses."""

import importlib
from collections.abc import Callable
from pathlib import Path

from tolktrain.config.prepare import PrepareConfig
from tolktrain.prepare.kind import Kind, Preparation
from tolktrain.units.description import CENTROIDS_FILE, DESCRIPTION_FILE

TEXT_FOLDER = "text_tokenizer"
SPEECH_FOLDER = "speech_tokenizer"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def preparation_of(config: PrepareConfig) -> Preparation:
    """The kind of preparation that is configured."""
    preparation: Preparation = importlib.import_module(f"tolktrain.prepare.{config.kind}.kind").PREPARATION
    return preparation


def make_kind(config: PrepareConfig, report: Callable[[str], None] = lambda text: None) -> Kind:
    """The kind of preparation. Fits the speech tokenizer first if that is configured; `report` gets a line about it.

    Raises `UserError` when a tokenizer, a model or the input cannot be read.
    """
    preparation = preparation_of(config)
    preparation.fit(config, report)
    return preparation.make(config)


def tokenizer_files(config: PrepareConfig) -> list[tuple[Path, str]]:
    """Files of the tokenizers, and their names in the output."""
    files: list[tuple[Path, str]] = []
    if config.text_tokenizer is not None:
        from tolktrain.data.text_tokenizer import tokenizer_folder

        folder = tokenizer_folder(config.text_tokenizer)
        # The folder may be that of a whole model.
        files += [(folder / name, f"{TEXT_FOLDER}/{name}") for name in TEXT_FILES if (folder / name).is_file()]
    speech = preparation_of(config).speech_tokenizer(config)
    if speech is not None:
        # HuBERT's and Mimi's own files stay at the path in speech_tokenizer.json.
        paths = [Path(speech) / name for name in (DESCRIPTION_FILE, CENTROIDS_FILE)]
        files += [(path, f"{SPEECH_FOLDER}/{path.name}") for path in paths if path.is_file()]
    return files
