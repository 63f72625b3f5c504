"""Reads any part of the tensors of a checkpoint, independent of the layout that wrote them."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tolktrain.checkpoint.manifest import DamagedCheckpointError
from tolktrain.checkpoint.slices import Shape
from tolktrain.files.names import NameRefusedError, all_inside
from tolktrain.files.reading import is_count, read_json, require_regular

TENSORS = "tensors.json"
TENSOR_FOLDER = "tensors"
_LARGEST_LIST = 1 << 28  # bytes; a million slices
_LARGEST_SIZE = 1 << 48


class CheckpointReader:
    """The tensors of a checkpoint. Files are opened when they are needed and stay open until it is closed.

    Not collective: each rank reads the blocks that it needs. Peak memory is the size of the requested block.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any] | None = None) -> None:
        """`index` is the content of tensors.json where it has been read already."""
        if index is not None:
            self._index = dict(index)
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._files.clear()
        self._open.close()

    @property
    def index(self) -> Mapping[str, Any]:
        """Content of tensors.json: kind, name, then the tensor's whole shape and where its slices are.

        Raises DamagedCheckpointError when it cannot be read.
        """
        return self._index

    def shapes(self, kind: str) -> Mapping[str, Shape]:
        """Whole shapes of the tensors of a kind, by name."""
        return {name: tuple(entry["shape"]) for name, entry in self._index.get(kind, {}).items()}

    def read(self, kind: str, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """The block of a tensor that begins at `offsets`, float32 on the CPU.

        Raises:
            KeyError: there is no such tensor.
            DamagedCheckpointError: the files lack a part of the block, or are not what tensors.json says.
        """
        blocks, filled = [], 0
        for stored in self._index[kind][name]["slices"]:
            begins = [max(a, b) for a, b in zip(offsets, stored["offsets"], strict=True)]
            ends = [
                min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, stored["offsets"], stored["sizes"], strict=True)
            ]
            if all(begin < end for begin, end in zip(begins, ends, strict=True)):
                there = _part(begins, ends, stored["offsets"])
                here = _part(begins, ends, offsets)
                blocks.append((here, self._stored(stored, kind, name), there))
                filled += math.prod(end - begin for begin, end in zip(begins, ends, strict=True))
        if filled != math.prod(sizes):
            raise DamagedCheckpointError(f"{self._folder / TENSORS}: {kind} of {name} are not all there")
        # Allocated only now: a forged size in tensors.json must not allocate more memory than the files hold.
        result = torch.empty(sizes, dtype=torch.float32)
        for here, block, there in blocks:
            result[here] = block[there]
        return result

    def read_whole(self, kind: str, name: str) -> Tensor:
        """A whole tensor, float32 on the CPU."""
        shape = self.shapes(kind)[name]
        return self.read(kind, name, (0,) * len(shape), shape)

    @cached_property
    def _index(self) -> dict[str, Any]:
        path = self._folder / TENSORS
        try:
            index = read_json(path, _LARGEST_LIST)
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{path}: the file is missing") from None
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"{path}: not the list of tensors that was written ({error})") from None
        try:
            all_inside(self._folder, _checked_files(index), path)
        except NameRefusedError as error:
            raise DamagedCheckpointError(str(error)) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedCheckpointError(f"{path}: not the list of tensors that was written ({error!r})") from None
        return dict(index)

    def _stored(self, stored: Mapping[str, Any], kind: str, name: str) -> Any:
        """Open a slice in its file."""
        file = stored["file"]
        path = self._folder / file
        try:
            if file not in self._files:
                require_regular(path)
                self._files[file] = self._open.enter_context(safe_open(path, framework="pt"))
            block = self._files[file].get_slice(_key(kind, name, file))
            shape = list(block.get_shape())
        except Exception as error:  # of the library's own kind
            raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from None
        if shape != stored["sizes"]:
            raise DamagedCheckpointError(f"{path}: {name} has the shape {shape}, {TENSORS} says {stored['sizes']}")
        return block


def _checked_files(index: Mapping[str, Any]) -> set[str]:
    """The files that a list of tensors names. Raises KeyError, TypeError, AttributeError or ValueError if it is
    malformed."""
    files: set[str] = set()
    for tensors in index.values():
        for name, entry in tensors.items():
            rank = len(_checked_sizes(name, entry["shape"]))
            for stored in entry["slices"]:
                if (
                    not len(_checked_sizes(name, stored["offsets"]))
                    == len(_checked_sizes(name, stored["sizes"]))
                    == rank
                ):
                    raise ValueError(f"a slice of {name} has another number of dimensions")
                files.add(stored["file"])
    return files


def _checked_sizes(name: str, sizes: object) -> list[int]:
    if not isinstance(sizes, list) or not all(is_count(size, _LARGEST_SIZE) for size in sizes):
        raise ValueError(f"a shape of {name} is not a list of sizes")
    return sizes


def _key(kind: str, name: str, file: str) -> str:
    """A tensor's name in a file. Older checkpoints have a folder for each kind, whose files omit the kind."""
    return name if file.startswith(f"{kind}/") else f"{kind}/{name}"


def _part(begins: list[int], ends: list[int], offsets: Shape) -> tuple[slice, ...]:
    """The block from `begins` to `ends`, relative to `offsets`."""
    return tuple(slice(b - o, e - o) for b, e, o in zip(begins, ends, offsets, strict=True))
