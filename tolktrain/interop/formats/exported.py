"""Weights without optimizer states, as `interop.weights` writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from tolktrain.checkpoint.manifest import digest_files, digest_of
from tolktrain.checkpoint.slices import Shape
from tolktrain.interop.formats.format import Weights, WeightsFormat
from tolktrain.interop.safetensors_folder import TensorFolder
from tolktrain.interop.weights import ARCHITECTURE, open_tensors, read_exported
from tolktrain.model.architecture import Architecture


def _describe(folder: Path) -> Weights:
    description = read_exported(folder)
    with open_tensors(folder) as tensors:
        shapes = tensors.shapes()
        names = {stored.file.name for stored in tensors.stored.values()}
    origin, tokenizers = description.get("source"), description.get("tokenizers")
    origin = origin if isinstance(origin, dict) else {}
    return Weights(
        format=FORMAT.name,
        folder=folder,
        architecture=Architecture.from_dict(description["architecture"]),
        shapes=shapes,
        step=origin.get("step"),
        stage=origin.get("stage"),
        digest=digest_of(digest_files(folder, sorted({*names, ARCHITECTURE}))),
        tokenizers=tokenizers if isinstance(tokenizers, dict) else {},
    )


class _Blocks:
    """Parts of the tensors of a folder."""

    def __init__(self, tensors: TensorFolder) -> None:
        self._tensors = tensors

    def block(self, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """The part of a tensor that begins at `offsets`."""
        where = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
        return self._tensors.block(name, where)


@contextmanager
def _open(weights: Weights) -> Iterator[_Blocks]:
    with open_tensors(weights.folder) as tensors:
        yield _Blocks(tensors)


FORMAT = WeightsFormat("exported weights", lambda folder: (folder / ARCHITECTURE).is_file(), _describe, _open)
