"""A model without its optimizer: plain safetensors files under canonical names, to publish or to load elsewhere.

```
DIR/
  model-00001-of-00002.safetensors   parameters
  model-00002-of-00002.safetensors
  model.safetensors.index.json       which file holds which, as Hugging Face writes it
  architecture.json                  sizes and switches of the model, and where the weights come from
  tokenizer.json, speech_tokenizer/  tokenizers, if they are known
```

`interop.export` adds what other programs need to read them, and `interop.imports` writes such folders from the files
of other programs.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from tolktrain.model.lora import Merged
from tolktrain.model.parameter_layout import Shape, canonical_shapes, check_names_and_shapes, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.listing import choose_checkpoint

ARCHITECTURE = "architecture.json"
SPEECH_FOLDER = "speech_tokenizer"
FORMAT_VERSION = 1
_REMEDY = "export the weights again"


@dataclass(frozen=True)
class OpenWeights:
    """The weights of a whole model, one tensor of which is read after the other."""

    folder: Path  # a checkpoint, exported weights, or the source of an import
    architecture: Architecture
    shapes: Mapping[str, Shape]  # by canonical name
    read: Callable[[str], Tensor]  # the tensor of a canonical name, on the CPU
    # Of training, as state.json of a checkpoint has them: step, stage_name, tokenizers, metrics; as far as known.
    state: Mapping[str, Any]
    sequence_length: int | None = None  # positions of a training sequence, if they are recorded with the weights
    origin: Mapping[str, Any] = field(default_factory=dict)  # of imported weights


Addition = Callable[[Path, OpenWeights], None]
"""Adds files to a folder of weights."""


def export_weights(
    source: Path,
    into: Path,
    step: int | None = None,
    dtype: DType = "fp32",
    report: Callable[[str], None] = print,
    file_bytes: int = FILE_BYTES,
    add: Addition = lambda folder, weights: None,
) -> Path:
    """Write the parameters of a model into the new or empty folder `into`; returns the folder they were read from.

    The folder appears complete or not at all. Memory: about two files of `file_bytes`, or the largest tensor.

    Args:
        source: see `open_source`.
        into: the new folder.
        step: of the checkpoint of a run.
        dtype: of the tensors.
        report: gets lines about damaged checkpoints and written files.
        file_bytes: of each file.
        add: adds further files.

    Raises:
        UserError: `into` is not empty or the present folder, which would be replaced, or see `open_source`.
    """
    require_new(into)
    with open_source(source, step, report) as weights:
        write_weights(weights, into, dtype, report, file_bytes, add)
    return weights.folder


def write_weights(
    weights: OpenWeights,
    into: Path,
    dtype: DType,
    report: Callable[[str], None],
    file_bytes: int = FILE_BYTES,
    add: Addition = lambda folder, weights: None,
    prepare: Callable[[Path, OpenWeights], OpenWeights] = lambda folder, weights: weights,
) -> None:
    """Write opened weights as `export_weights` does. `prepare` adds files before the tensors, and may change what is
    recorded about the weights."""
    with new_folder(into) as aside:
        weights = prepare(aside, weights)
        write_tensors(aside, weights.shapes, weights.read, dtype, report, file_bytes)
        state = weights.state
        description = {
            "format_version": FORMAT_VERSION,
            "architecture": weights.architecture.to_dict(),
            "dtype": dtype,
            "tokenizers": state.get("tokenizers", {}),
            "source": {
                "step": state.get("step"),
                "stage": state.get("stage_name"),
                "tolktrain": __version__,
                **({"imported": dict(weights.origin)} if weights.origin else {}),
            },
            **({"metrics": state["metrics"]} if state.get("metrics") else {}),
            **({} if weights.sequence_length is None else {"sequence_length": weights.sequence_length}),
        }
        write_synced(aside / ARCHITECTURE, json.dumps(description, indent=1).encode())
        add(aside, weights)


@contextmanager
def open_source(source: Path, step: int | None, report: Callable[[str], None]) -> Iterator[OpenWeights]:
    """Open the weights of a trained model, after a checkpoint was verified. Low-rank updates are merged.

    Args:
        source: a run, of which the latest valid checkpoint is taken, or that of `step`; a checkpoint; or a folder that
            `write_weights` has written.
        step: of the checkpoint of a run.
        report: gets lines about damaged checkpoints.

    Raises:
        UserError: there are no such weights, or they are damaged.
    """
    if is_weights(source):
        if step is not None:
            raise UserError(f"{source} is a folder of weights; give --step with a run directory only")
        with open_exported(source) as weights:
            yield weights
        return
    folder = checkpoint_of(source, step, report)
    state = read_state(folder)
    architecture = Architecture.from_dict(state["architecture"])
    with CheckpointReader(folder) as reader:
        shapes: Mapping[str, Shape] = reader.shapes(PARAMETERS)
        read: Callable[[str], Tensor] = partial(reader.read_whole, PARAMETERS)
        if architecture.lora is not None:
            merged = Merged(shapes, read, architecture.lora)
            architecture, shapes, read = replace(architecture, lora=None), merged.shapes, merged.__getitem__
        yield OpenWeights(folder, architecture, shapes, read, state)


@contextmanager
def open_exported(folder: Path) -> Iterator[OpenWeights]:
    """Open a folder that `write_weights` has written.

    Raises UserError when files are missing, are not what was written, or belong to another architecture.
    """
    description = read_exported(folder)
    architecture = Architecture.from_dict(description["architecture"])
    source, tokenizers, metrics = (description.get(key) for key in ("source", "tokenizers", "metrics"))
    source = source if isinstance(source, dict) else {}
    origin, length = source.get("imported"), description.get("sequence_length")
    with open_tensors(folder) as tensors:
        shapes = tensors.shapes()
        check_names_and_shapes(expected_shapes(architecture), shapes)
        yield OpenWeights(
            folder,
            architecture,
            shapes,
            tensors.__getitem__,
            {
                "step": source.get("step"),
                "stage_name": source.get("stage"),
                "tokenizers": tokenizers if isinstance(tokenizers, dict) else {},
                "metrics": metrics if isinstance(metrics, dict) else {},
            },
            length if type(length) is int and length > 1 else None,
            origin if isinstance(origin, dict) else {},
        )


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of all tensors of an architecture, by canonical name; no memory is allocated for them."""
    with torch.device("meta"):
        return canonical_shapes(SmolTolk(architecture, seed=None), with_copies=True)


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


def is_weights(folder: Path) -> bool:
    """Whether a folder holds weights as `write_weights` writes them."""
    return (folder / ARCHITECTURE).is_file()


def load_weights(folder: str | Path) -> SmolTolk:
    """The model that `export_weights` has written, float32 on the CPU; one parameter after the other is read.

    Raises UserError like `open_exported`.
    """
    with open_exported(Path(folder)) as weights:
        return build_model(weights)


def build_model(weights: OpenWeights, layout: Layout | None = None) -> SmolTolk:
    """The model of opened weights, float32 on the CPU; with a layout, this rank's part.

    Raises UserError if names or shapes are not those of its architecture.
    """
    model = SmolTolk(weights.architecture, None, layout)
    check_names_and_shapes(canonical_shapes(model, with_copies=True), weights.shapes)
    copy_canonical(model, _Tensors(weights))
    return model


class _Tensors(Mapping[str, Tensor]):
    """Opened weights by name, read on access."""

    def __init__(self, weights: OpenWeights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._weights.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.shapes)

    def __len__(self) -> int:
        return len(self._weights.shapes)


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
