"""Finds the format of a folder of weights."""

import importlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

from tolktrain.errors import UserError
from tolktrain.interop.export.model_config import is_saved_by_transformers
from tolktrain.interop.formats.format import Weights, WeightsFormat, WeightsReader

MODULES = ("checkpoint", "run", "exported")  # of this package; each defines FORMAT
FORMATS: Mapping[str, WeightsFormat] = MappingProxyType(
    {
        found.name: found
        for found in (importlib.import_module(f"tolktrain.interop.formats.{name}").FORMAT for name in MODULES)
    }
)
_ADDRESS = re.compile(r"/[a-z][a-z0-9]+:/")


def describe_weights(path: Path, key: str) -> Weights:
    """What a folder of weights holds, after its files were verified.

    Args:
        path: of the folder.
        key: of the configuration that names it, for messages.

    Raises:
        UserError: there is no such folder, it has no known format, or its files are damaged.
    """
    if not path.is_dir():
        hint = "; copy it to a folder first" if _ADDRESS.search(str(path)) else ""
        if path.is_file():
            hint = "; tolktrain import reads a file of the SmolTolk authors into a folder of weights"
        raise UserError(f"{key}: {path} is no folder; give a run, a checkpoint or exported weights{hint}")
    found = next((known for known in FORMATS.values() if known.recognizes(path)), None)
    if found is not None:
        try:
            return found.describe(path)
        except UserError as error:
            raise UserError(f"{key}: {error}", by_machine=error.by_machine) from error
    if is_saved_by_transformers(path):
        raise UserError(f"{key}: {path} was saved by transformers; read it first: tolktrain import {path} INTO")
    if (path / "config.json").is_file():
        raise UserError(
            f"{key}: {path} is a Hugging Face checkpoint, which has the weights of a backbone only; set model.backbone"
            " to it"
        )
    raise UserError(
        f"{key}: {path} holds no weights of a known format ({', '.join(FORMATS)}); give a run, a checkpoint of it"
        " (step-...), or a folder that `tolktrain export` or `tolktrain import` has written"
    )


def open_weights(weights: Weights) -> AbstractContextManager[WeightsReader]:
    """Opens described weights for reading."""
    return FORMATS[weights.format].open(weights)
