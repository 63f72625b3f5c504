"""Folders of weights that tolktrain has written, also after transformers has saved them again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.interop.export.model_config import MODEL_TYPE, architecture_from
from tolktrain.interop.safetensors_folder import TensorFolder
from tolktrain.interop.weights import (
    OpenWeights,
    expected_shapes,
    is_checkpoint,
    is_weights,
    open_exported,
)
from tolktrain.runs.paths import RunPaths

_CONFIG = "config.json"
_REMEDY = "export or download the folder again"


@contextmanager
def open_folder(folder: Path) -> Iterator[OpenWeights]:
    """Open the weights in a folder: exported by tolktrain, or a model in the hf format that transformers has saved.

    Raises UserError, with what to do instead, if the folder holds something else, or its files are damaged.
    """
    if is_weights(folder):
        with open_exported(folder) as weights:
            yield weights
        return
    if is_checkpoint(folder) or RunPaths(folder).config.is_file():
        raise UserError(f"{folder} is a run or a checkpoint of one, which needs no import; tolktrain export writes it")
    config = _config(folder)
    with TensorFolder.open(folder, "", _REMEDY) as tensors:
        yield _resaved(folder, config, tensors)


def _config(folder: Path) -> Mapping[str, Any]:
    """config.json of a model in the hf format."""
    path = folder / _CONFIG
    if not path.is_file():
        files = sorted(folder.glob("*.pt"))
        hint = f"; import the file itself: {files[0]}" if files else ""
        raise UserError(
            f"{folder} has neither architecture.json nor {_CONFIG}; expected a folder that tolktrain export"
            f" has written, or a file of the SmolTolk authors{hint}"
        )
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {_REMEDY}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != MODEL_TYPE:
        hint = "; a text model begins a run as model.backbone" if kind in ("llama", "mistral") else ""
        raise UserError(f"{path} describes a model of type {kind!r}; expected {MODEL_TYPE!r}{hint}")
    assert isinstance(config, dict)
    return config


def _resaved(folder: Path, config: Mapping[str, Any], tensors: TensorFolder) -> OpenWeights:
    architecture = architecture_from(config, folder / _CONFIG)
    shapes, expected = tensors.shapes(), expected_shapes(architecture)
    missing, surplus = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    if missing or surplus:
        problem = f"lacks {missing[0]}" if missing else f"has no place for {surplus[0]}"
        raise UserError(f"{folder} {problem}, by its {_CONFIG}; {_REMEDY}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(shapes[name])}, {_CONFIG} asks for {list(shape)}; {_REMEDY}"
            )
    tokenizers = config.get("tokenizers")
    length = config.get("max_position_embeddings")
    return OpenWeights(
        folder,
        architecture,
        shapes,
        tensors.__getitem__,
        {"tokenizers": tokenizers if isinstance(tokenizers, dict) else {}},
        length if type(length) is int and length > 1 else None,
    )
