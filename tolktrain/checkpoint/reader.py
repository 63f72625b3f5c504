"""Reads any part of the tensors of a checkpoint, whatever ranks wrote them."""

import json
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

TENSORS = "tensors.json"


class CheckpointReader:
    """The tensors of a checkpoint. Files are opened when they are needed and stay open until it is closed.

    Not collective: each rank reads what it wants. Memory is that of the block asked for.
    """

    def __init__(self, folder: Path) -> None:
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

    def shapes(self, kind: str) -> Mapping[str, Shape]:
        """Whole shapes of the tensors of a kind, by name."""
        return {name: tuple(entry["shape"]) for name, entry in self._index.get(kind, {}).items()}

    def read(self, kind: str, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """The block of a tensor that begins at `offsets`, float32 on the CPU.

        Raises:
            KeyError: there is no such tensor.
            DamagedCheckpointError: the files lack a part of the block.
        """
        result = torch.empty(sizes, dtype=torch.float32)
        filled = 0
        for stored in self._index[kind][name]["slices"]:
            begins = [max(a, b) for a, b in zip(offsets, stored["offsets"], strict=True)]
            ends = [
                min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, stored["offsets"], stored["sizes"], strict=True)
            ]
            if all(begin < end for begin, end in zip(begins, ends, strict=True)):
                there = _part(begins, ends, stored["offsets"])
                here = _part(begins, ends, offsets)
                result[here] = self._stored(stored["file"], name)[there]
                filled += math.prod(end - begin for begin, end in zip(begins, ends, strict=True))
        if filled != math.prod(sizes):
            raise DamagedCheckpointError(f"{self._folder / TENSORS}: {kind} of {name} are not all there")
        return result

    def read_whole(self, kind: str, name: str) -> Tensor:
        """A whole tensor, float32 on the CPU."""
        shape = self.shapes(kind)[name]
        return self.read(kind, name, (0,) * len(shape), shape)

    @cached_property
    def _index(self) -> dict[str, Any]:
        path = self._folder / TENSORS
        try:
            index = json.loads(path.read_bytes())
        except OSError:
            raise DamagedCheckpointError(f"{path}: the file is missing") from None
        except ValueError:
            raise DamagedCheckpointError(f"{path}: not the list of tensors that was written") from None
        return dict(index)

    def _stored(self, file: str, name: str) -> Any:
        if file not in self._files:
            try:
                opened = safe_open(self._folder / file, framework="pt")
            except Exception as error:  # of the library's own kind
                raise DamagedCheckpointError(f"{self._folder / file}: cannot be read: {error}") from None
            self._files[file] = self._open.enter_context(opened)
        return self._files[file].get_slice(name)


def _part(begins: list[int], ends: list[int], offsets: Shape) -> tuple[slice, ...]:
    """The block from `begins` to `ends`, as seen from `offsets`."""
    return tuple(slice(b - o, e - o) for b, e, o in zip(begins, ends, offsets, strict=True))
