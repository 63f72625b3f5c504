"""A model without its optimizer: plain safetensors files under canonical names, to publish or to load elsewhere.

```
DIR/
  model-00001-of-00002.safetensors   parameters
  model-00002-of-00002.safetensors
  model.safetensors.index.json       which file holds which, as Hugging Face writes it
  architecture.json                  sizes and switches of the model, and where the weights come from
```
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from tolktrain import __version__
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import PARAMETERS
from tolktrain.checkpoint.store import read_state
from tolktrain.errors import UserError
from tolktrain.files.reading import DESCRIPTION_BYTES, TABLE_BYTES, read_json
from tolktrain.files.writing import naming, sync_path, write_synced
from tolktrain.interop.safetensors_folder import INDEX, TensorFolder
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import Shape, canonical_shapes, check_names_and_shapes, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.runs.listing import choose_checkpoint

ARCHITECTURE = "architecture.json"
FORMAT_VERSION = 1
# A file is assembled in memory before it is written.
FILE_BYTES = 2 * 1024**3

_REMEDY = "export the weights again"

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def export_weights(
    run_dir: Path,
    into: Path,
    step: int | None = None,
    dtype: Literal["float32", "bf16"] = "float32",
    report: Callable[[str], None] = print,
    file_bytes: int = FILE_BYTES,
) -> Path:
    """Write the parameters of a run's checkpoint into the new or empty folder `into`; returns the checkpoint.

    Takes the latest valid checkpoint, or that of `step`, after verifying its checksums. The folder appears
    complete or not at all. Memory: about two files of `file_bytes`, or the largest tensor.

    Raises UserError when `into` is not empty or the present folder, which would be replaced, or there is no such valid
    checkpoint.
    """
    into = into.resolve()
    if into == Path.cwd() or (into.exists() and not (into.is_dir() and not any(into.iterdir()))):
        raise UserError(f"{into} exists and is not an empty folder, or the present one; name a new one")
    folder = choose_checkpoint(run_dir, step, report)
    into.parent.mkdir(parents=True, exist_ok=True)
    aside = into.with_name(f".tmp-{into.name}-{os.getpid()}")
    aside.mkdir()
    try:
        with CheckpointReader(folder) as reader:
            _write(reader, read_state(folder), aside, dtype, report, file_bytes)
        sync_path(aside)
        aside.rename(into)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_path(into.parent)
    return folder


def load_weights(folder: str | Path) -> SmolTolk:
    """The model that `export_weights` has written, float32 on the CPU; one parameter after the other is read.

    Raises UserError when files are missing, are not what was written, or belong to another architecture.
    """
    folder = Path(folder)
    description = read_exported(folder)
    model = SmolTolk(Architecture.from_dict(description["architecture"]), seed=None)
    with open_tensors(folder) as tensors:
        check_names_and_shapes(canonical_shapes(model, with_copies=True), tensors.shapes())
        copy_canonical(model, tensors)
    return model


def read_exported(folder: Path) -> dict[str, Any]:
    """architecture.json of exported weights. Raises UserError if it is not what this version writes."""
    description = _json(folder / ARCHITECTURE)
    if description.get("format_version") != FORMAT_VERSION or not isinstance(description.get("architecture"), dict):
        raise UserError(
            f"{folder / ARCHITECTURE}: format {description.get('format_version')!r}, but this version of tolktrain"
            f" reads format {FORMAT_VERSION}; export the weights again"
        )
    return description


def open_tensors(folder: Path) -> TensorFolder:
    """The tensors of exported weights. Raises UserError like `TensorFolder.open`, or if there is no index."""
    _json(folder / INDEX, TABLE_BYTES)
    return TensorFolder.open(folder, "", _REMEDY)


def _write(
    reader: CheckpointReader,
    state: Mapping[str, Any],
    aside: Path,
    dtype: Literal["float32", "bf16"],
    report: Callable[[str], None],
    file_bytes: int,
) -> None:
    shapes = reader.shapes(PARAMETERS)
    itemsize = DTYPES[dtype].itemsize
    groups = _groups(shapes, itemsize, file_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: reader.read_whole(PARAMETERS, name).to(DTYPES[dtype]) for name in names}
        with naming(aside / file):
            save_file(tensors, aside / file, metadata={"format": "pt"})
        sync_path(aside / file)
        weight_map.update(dict.fromkeys(names, file))
        report(f"{file}: {len(names)} tensors")
    total = sum(itemsize * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": state["architecture"],
        "dtype": dtype,
        "tokenizers": state.get("tokenizers", {}),
        "source": {"step": state.get("step"), "stage": state.get("stage_name"), "tolktrain": __version__},
    }
    write_synced(aside / INDEX, json.dumps(index, indent=1).encode())
    write_synced(aside / ARCHITECTURE, json.dumps(description, indent=1).encode())


def _groups(shapes: Mapping[str, Shape], itemsize: int, file_bytes: int) -> Sequence[list[str]]:
    """Names by file, in order, each file as full as `file_bytes` allows; a larger tensor has a file of its own."""
    groups: list[list[str]] = []
    room = 0
    for name in sorted(shapes):
        size = itemsize * math.prod(shapes[name])
        if not groups or size > room:
            groups.append([])
            room = file_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _json(path: Path, limit: int = DESCRIPTION_BYTES) -> dict[str, Any]:
    try:
        content = read_json(path, limit)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a folder of exported weights") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what was written; {_REMEDY}")
    return content
