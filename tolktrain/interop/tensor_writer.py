"""Writes folders of safetensors files with an index, as Hugging Face does, each complete or not at all."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.files.writing import naming, sync_path, write_synced
from tolktrain.interop.safetensors_folder import INDEX
from tolktrain.model.parameter_layout import Shape

DType = Literal["fp32", "bf16"]
DTYPES: Mapping[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A file is assembled in memory before it is written.
FILE_BYTES = 2 * 1024**3


def require_new(into: Path) -> None:
    """Raise UserError if a folder is not empty, or is the present one, which would be replaced."""
    into = into.resolve()
    if into == Path.cwd() or (into.exists() and not (into.is_dir() and not any(into.iterdir()))):
        raise UserError(f"{into} exists and is not an empty folder, or the present one; name a new one")


@contextmanager
def new_folder(into: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `into` at the end of the block; removed if the block raises.

    Raises:
        UserError: `into` is not empty, or the present folder, which would be replaced.
    """
    into = into.resolve()
    require_new(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    aside = into.with_name(f".tmp-{into.name}-{os.getpid()}")
    aside.mkdir()
    try:
        yield aside
        sync_path(aside)
        aside.rename(into)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_path(into.parent)


def write_tensors(
    folder: Path,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
    dtype: DType,
    report: Callable[[str], None],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write model-*.safetensors and their index.

    Memory: about two files of `file_bytes`, or the largest tensor.

    Args:
        folder: of the files.
        shapes: of the tensors, by name.
        read: gives the tensor of a name.
        dtype: of the files.
        report: gets a line for each file.
        file_bytes: of each file; a larger tensor has a file of its own.
    """
    itemsize = DTYPES[dtype].itemsize
    groups = _groups(shapes, itemsize, file_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: read(name).to(DTYPES[dtype]).contiguous() for name in names}
        with naming(folder / file):
            save_file(tensors, folder / file, metadata={"format": "pt"})
        sync_path(folder / file)
        weight_map.update(dict.fromkeys(names, file))
        report(f"{file}: {len(names)} tensors")
    total = sum(itemsize * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_synced(folder / INDEX, json.dumps(index, indent=1).encode())


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
