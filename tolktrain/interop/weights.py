"""A model without its optimizer: plain safetensors files under canonical names, to publish or to load elsewhere.

```
DIR/
  model-00001-of-00002.safetensors   parameters
  model-00002-of-00002.safetensors
  model.safetensors.index.json       which file holds which, as Hugging Face writes it
  architecture.json                  sizes and switches of the model, and where the weights come from
```

`interop.export` adds what other programs need to read them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tolktrain import __version__
from tolktrain.checkpoint.manifest import MANIFEST, verify
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import PARAMETERS
from tolktrain.checkpoint.store import STATE, read_state
from tolktrain.errors import UserError
from tolktrain.files.reading import DESCRIPTION_BYTES, TABLE_BYTES, read_json
from tolktrain.files.writing import write_synced
from tolktrain.interop.safetensors_folder import INDEX, TensorFolder
from tolktrain.interop.tensor_writer import FILE_BYTES, DType, new_folder, require_new, write_tensors
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_shapes, check_names_and_shapes, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.runs.listing import choose_checkpoint

ARCHITECTURE = "architecture.json"
FORMAT_VERSION = 1
_REMEDY = "export the weights again"


Addition = Callable[[Path, Mapping[str, Any]], None]
"""Adds files to a folder of weights, from the state of the checkpoint."""


def export_weights(
    source: Path,
    into: Path,
    step: int | None = None,
    dtype: DType = "fp32",
    report: Callable[[str], None] = print,
    file_bytes: int = FILE_BYTES,
    add: Addition = lambda folder, state: None,
) -> Path:
    """Write the parameters of a checkpoint into the new or empty folder `into`; returns the checkpoint.

    The folder appears complete or not at all. Memory: about two files of `file_bytes`, or the largest tensor.

    Args:
        source: a run, of which the latest valid checkpoint is taken, or that of `step`; or a checkpoint. Checksums are
            verified.
        into: the new folder.
        step: of the checkpoint of a run.
        dtype: of the tensors.
        report: gets lines about damaged checkpoints and written files.
        file_bytes: of each file.
        add: adds further files.

    Raises:
        UserError: `into` is not empty or the present folder, which would be replaced, or there is no such valid
            checkpoint.
    """
    require_new(into)
    folder = checkpoint_of(source, step, report)
    state = read_state(folder)
    with new_folder(into) as aside:
        with CheckpointReader(folder) as reader:
            shapes = reader.shapes(PARAMETERS)
            write_tensors(aside, shapes, lambda name: reader.read_whole(PARAMETERS, name), dtype, report, file_bytes)
        description = {
            "format_version": FORMAT_VERSION,
            "architecture": state["architecture"],
            "dtype": dtype,
            "tokenizers": state.get("tokenizers", {}),
            "source": {"step": state.get("step"), "stage": state.get("stage_name"), "tolktrain": __version__},
        }
        write_synced(aside / ARCHITECTURE, json.dumps(description, indent=1).encode())
        add(aside, state)
    return folder


def checkpoint_of(source: Path, step: int | None, report: Callable[[str], None]) -> Path:
    """The folder of the checkpoint that a run or a checkpoint names, verified. Raises UserError if there is none."""
    if is_checkpoint(source):
        if step is not None:
            raise UserError(f"{source} is a checkpoint; give --step with a run directory only")
        verify(source)
        return source
    return choose_checkpoint(source, step, report)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, and not a run."""
    return (folder / MANIFEST).is_file() or (folder / STATE).is_file()


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


def _json(path: Path, limit: int = DESCRIPTION_BYTES) -> dict[str, Any]:
    try:
        content = read_json(path, limit)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a folder of exported weights") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what was written; {_REMEDY}")
    return content
