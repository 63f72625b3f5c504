"""Checkpoint files of the authors of SmolTolk: one pickle of `torch.save` with `model` and `model_args`.

The file is read by PyTorch's restricted reader, which makes tensors and plain values and calls nothing else. Tensors
are mapped into memory, so a file with optimizer states costs no more than one without.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.files.reading import file_sha256, require_regular

MODEL, MODEL_ARGS = "model", "model_args"
_COMPILED = "_orig_mod."  # before each name if the state of a compiled model was saved
_CLASS = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL|Trying to call reduce for unrecognized function) ([\w.]+)")
_SMALLEST = 64  # bytes; less than any file of torch.save has
_NOT_TORCH = {
    b"version https://git-lfs": "is a pointer of Git LFS instead of the file itself; run `git lfs pull` in its folder",
    b"<!DOCTYPE": "is a web page; download the file itself",
    b"<html": "is a web page; download the file itself",
}


@dataclass(frozen=True)
class PublishedFile:
    """What such a file holds."""

    path: Path
    tensors: Mapping[str, Tensor]  # by published name, without the prefix of a compiled model
    arguments: Mapping[str, Any]  # `model_args`: plain values
    step: int | None  # of training
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "PublishedFile":
        """Read a file; no code in it is executed.

        Raises:
            UserError: it is incomplete, no file of `torch.save`, holds objects of foreign classes, or is not a
                checkpoint of the authors' code.
        """
        content = _load(path)
        if not isinstance(content, dict) or not {MODEL, MODEL_ARGS} <= set(content):
            keys = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
            raise UserError(
                f"{path} is no checkpoint of the SmolTolk authors' code: it lacks {MODEL!r} and {MODEL_ARGS!r} (found"
                f" {keys}); expected a file such as model_ckpt.pt of Anon-SmolTolk/SmolTolk-2B"
            )
        model, arguments = content[MODEL], content[MODEL_ARGS]
        if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
            raise UserError(f"{path}: {MODEL!r} is no table of tensors; save model.state_dict()")
        if not isinstance(arguments, dict):
            raise UserError(f"{path}: {MODEL_ARGS!r} is no dictionary; save the fields of ModelArgs as a dict")
        odd = next((name for name, tensor in model.items() if not _has_values(tensor)), None)
        if odd is not None:
            raise UserError(f"{path}: {odd!r:.100} of {MODEL!r} is no dense tensor in memory; save the model again")
        odd = next((name for name, value in arguments.items() if isinstance(value, Tensor)), None)
        if odd is not None:
            raise UserError(f"{path}: {odd!r:.100} of {MODEL_ARGS!r} is a tensor, expected a plain value; correct it")
        step = content.get("iter_num")
        return cls(path, _plain_names(path, model), arguments, step if type(step) is int else None, file_sha256(path))


def _has_values(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _plain_names(path: Path, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.items():
        plain = str(name).removeprefix(_COMPILED)
        if plain in tensors:
            raise UserError(f"{path} holds {plain} with and without the prefix {_COMPILED!r}; save the model again")
        tensors[plain] = tensor
    return tensors


def _load(path: Path) -> Any:
    try:
        require_regular(path)
        with path.open("rb") as file:
            begin = file.read(_SMALLEST)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name a file that exists") from None
    problem = next((text for mark, text in _NOT_TORCH.items() if begin.startswith(mark)), None)
    if problem is not None:
        raise UserError(f"{path} {problem}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyhow
            # Only the format since PyTorch 1.6, a zip archive, can be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=begin.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        found = _CLASS.search(str(error))
        if found is None:
            raise UserError(f"{path} is no file of torch.save ({_line(error)}); download it again") from None
        raise UserError(
            f"{path} holds an object of {found[1]}, which is not loaded, because loading it could execute code; load"
            f" the file where you trust it and save its tensors and plain values only: torch.save({{'{MODEL}': ...,"
            f" '{MODEL_ARGS}': ...}}, path)"
        ) from None
    except Exception as error:  # an archive that is cut raises RuntimeError, EOFError, OSError, ValueError and others
        raise UserError(
            f"{path} cannot be read as a file of torch.save ({_line(error)}); the download is incomplete: download it"
            " again"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
