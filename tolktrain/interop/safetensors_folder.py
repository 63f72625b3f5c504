"""The tensors in a folder of safetensors files. Files of the folder that contradict each other are refused.

`model.safetensors`, or the shards that `model.safetensors.index.json` lists, hold the weights; see `TensorFolder.open`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tolktrain.checkpoint.slices import Shape
from tolktrain.errors import UserError
from tolktrain.files.names import files_inside
from tolktrain.files.reading import TABLE_BYTES, open_regular, read_json, require_regular
from tolktrain.interop.finite import non_finite

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Other files that training programs leave in the folder of a model, which hold no weights of it that could be read.
_NO_WEIGHTS = re.compile(r"(adapter_|consolidated|optimizer|training_args|scheduler|random_states).*")
_FLOATS = ("F64", "F32", "F16", "BF16")
_LFS = b"version https://git-lfs"
# What a folder without safetensors files may hold instead: pattern, meaning, and what to do.
_INSTEAD = (
    (
        "adapter_model.*",
        "an adapter (LoRA), which is not a whole model",
        "merge it into its base model with peft (merge_and_unload) and save the result with save_pretrained",
    ),
    (
        "consolidated*",
        "weights in the original format of Meta or Mistral",
        "download the Hugging Face format of the same model, or convert them with transformers",
    ),
    (
        "*.gguf",
        "weights that are quantized for llama.cpp (GGUF)",
        "take the Hugging Face checkpoint that it was made from",
    ),
    (
        "*.msgpack",
        "weights of Flax",
        "load them with transformers (from_flax=True) and save them with save_pretrained",
    ),
    (
        "*.h5",
        "weights of TensorFlow",
        "load them with transformers (from_tf=True) and save them with save_pretrained",
    ),
    *(
        (pattern, "pickled weights", "load them with transformers and save them with save_pretrained, as safetensors")
        for pattern in ("pytorch_model*", "model*.bin", "*.pth", "model*.pt")
    ),
)


class Stored(NamedTuple):
    """Where a tensor is, and what its file says about it."""

    file: Path
    dtype: str  # as safetensors names it, such as F32 or BF16
    shape: Shape


class TensorFolder(Mapping[str, Tensor]):
    """The tensors of a folder by name, read on access. Files stay open until it is closed."""

    def __init__(self, folder: Path, owner: str, remedy: str) -> None:
        """`owner` begins all messages, such as "model.backbone: "; `remedy` replaces a broken folder."""
        self.folder = folder
        self.owner = owner
        self.remedy = remedy
        self.stored: dict[str, Stored] = {}
        self._files: dict[Path, Any] = {}
        self._headers: dict[Path, dict[str, Stored]] = {}
        self._stack = ExitStack()

    @classmethod
    def open(cls, folder: Path, owner: str, remedy: str) -> "TensorFolder":
        """Read the headers of all files that hold weights, but no weights.

        With an index, the tensors are those that it lists. Without one, they are those of model.safetensors; without
        that, those of all files. Shards and a model.safetensors that are not the source must hold the same tensors with
        equal bytes, which is the only case in which values are read here. Other files are ignored.

        Raises:
            UserError: there are no weights, a file cannot be read, or files contradict each other.
        """
        tensors = cls(folder, owner, remedy)
        try:
            tensors._find()
        except BaseException:
            tensors.close()
            raise
        return tensors

    def __enter__(self) -> "TensorFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._files.clear()
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        """A whole tensor, as it is stored.

        Raises:
            KeyError: there is no such tensor.
            UserError: it is quantized or not finite, or its file cannot be read.
        """
        return self.block(name, ...)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def block(self, name: str, where: Any) -> Tensor:
        """The part of a tensor at an index. Raises like `__getitem__`."""
        file, dtype, _ = self.stored[name]
        if dtype not in _FLOATS:
            raise UserError(
                f"{self.owner}{name} in {file} has the type {dtype}, which holds quantized weights; take the checkpoint"
                " as it was before quantization, with weights in bf16, fp16 or float32"
            )
        tensor = self._read(file, name, where)
        problem = non_finite(tensor)
        if problem is not None:
            raise UserError(
                f"{self.owner}{name} in {file} {problem}; training cannot begin from it; {self.remedy}, or take another"
                " checkpoint of the same model"
            )
        return tensor

    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor."""
        return {name: stored.shape for name, stored in self.stored.items()}

    def same(self, name: str, file: Path, other: str, other_file: Path) -> bool:
        """Whether a tensor in a file is equal to another, in type, shape and bytes; both are read."""
        if self._header(file)[name][1:] != self._header(other_file)[other][1:]:
            return False
        pair = (self._read(file, name, ...), self._read(other_file, other, ...))
        ours, theirs = (tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in pair)
        return torch.equal(ours, theirs)

    def _find(self) -> None:
        folder = self.folder
        single, shards = folder / SINGLE, sorted(p for p in folder.glob("model-*") if _SHARD.fullmatch(p.name))
        listed = self._listed()
        if listed is not None:
            self._take_listed(listed)
        elif single.exists():
            self.stored = dict(self._header(single))
        else:
            self._take_all(shards or self._others())
            return
        used = {stored.file for stored in self.stored.values()}
        for file in [*([single] if single.exists() else []), *shards]:
            if file not in used:
                self._compare(file)
        if listed is not None and single.exists() and single not in used:
            absent = sorted(set(self.stored) - set(self._header(single)))
            if absent:
                self._refuse(f"{folder / INDEX} lists {absent[0]}, which {SINGLE} does not hold", [INDEX, SINGLE])

    def _listed(self) -> dict[str, Path] | None:
        """The file of each tensor, from the index; None without one."""
        index = self.folder / INDEX
        if not index.exists():
            return None
        try:
            table = dict(read_json(index, TABLE_BYTES)["weight_map"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.owner}{index} is no index of shards ({error}); {self.remedy}") from None
        return files_inside(self.folder, table, index)

    def _take_listed(self, listed: Mapping[str, Path]) -> None:
        index = self.folder / INDEX
        for file in sorted(set(listed.values())):
            if not file.exists() and (self.folder / SINGLE).exists():
                self._refuse(f"{index} lists {file.name}, which does not exist, next to {SINGLE}", [INDEX, SINGLE])
            header = self._header(file)
            for name in sorted(name for name, place in listed.items() if place == file):
                if name not in header:
                    self._refuse(f"{index} says that {name} is in {file.name}, which does not hold it", [])
                self.stored[name] = header[name]
        for file in sorted(set(listed.values())):
            for name in sorted(self._header(file)):
                if name not in listed:
                    self._refuse(f"{index} lacks {name}, which {file.name} holds", [])
                self._check_equal(name, file)

    def _take_all(self, files: list[Path]) -> None:
        for file in files:
            for name, stored in self._header(file).items():
                self.stored.setdefault(name, stored)
                self._check_equal(name, file)

    def _compare(self, file: Path) -> None:
        """Refuse a file that holds anything else than the tensors that were found already."""
        for name in sorted(self._header(file)):
            if name not in self.stored:
                sources = sorted({stored.file.name for stored in self.stored.values()})
                self._refuse(
                    f"{file.name} holds {name}, which is not among the tensors of {', '.join(sources[:3])}"
                    + (", ..." if sources[3:] else ""),
                    [file.name, INDEX if (self.folder / INDEX).exists() else sources[0]],
                )
            self._check_equal(name, file)

    def _check_equal(self, name: str, file: Path) -> None:
        first = self.stored[name].file
        if first != file and not self.same(name, first, name, file):
            self._refuse(f"{name} is in {first.name} and in {file.name}, and the two differ", [first.name, file.name])

    def _refuse(self, problem: str, either: list[str]) -> None:
        choice = f"; move away {' or '.join(either)}, whichever does not belong to the model" if either else ""
        raise UserError(
            f"{self.owner}the files in {self.folder} contradict each other: {problem}{choice}; or {self.remedy}"
        )

    def _others(self) -> list[Path]:
        """Files of other names. Raises UserError if there are none."""
        files = sorted(p for p in self.folder.glob("*.safetensors") if not _NO_WEIGHTS.fullmatch(p.name))
        if files:
            return files
        begin = f"{self.owner}{self.folder} holds no *.safetensors file with the weights of a model"
        for pattern, meaning, action in _INSTEAD:
            found = sorted(self.folder.glob(pattern))
            if found:
                raise UserError(f"{begin}; {found[0].name} holds {meaning}; {action}")
        below = sorted(self.folder.glob("*/model*.safetensors"))
        if below:
            raise UserError(f"{begin}, but {below[0].parent} does; name that folder")
        raise UserError(f"{begin}; {self.remedy}")

    def _header(self, file: Path) -> dict[str, Stored]:
        if file not in self._headers:
            handle = self._handle(file)
            try:
                parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  # it is no mapping
                self._headers[file] = {
                    name: Stored(file, str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()
                }
            except SafetensorError as error:
                raise self._unreadable(file, error) from None
        return self._headers[file]

    def _handle(self, file: Path) -> Any:
        if file not in self._files:
            try:
                require_regular(file)
                self._files[file] = self._stack.enter_context(safe_open(file, "pt"))
            except (OSError, SafetensorError) as error:
                raise self._unreadable(file, error) from None
        return self._files[file]

    def _read(self, file: Path, name: str, where: Any) -> Tensor:
        handle = self._handle(file)
        try:
            tensor: Tensor = handle.get_tensor(name) if where is ... else handle.get_slice(name)[where]
        except SafetensorError as error:
            raise self._unreadable(file, error) from None
        return tensor

    def _unreadable(self, file: Path, error: Exception) -> UserError:
        try:
            with open_regular(file) as content:
                is_pointer = content.read(len(_LFS)) == _LFS
        except OSError:
            is_pointer = False
        if is_pointer:
            return UserError(
                f"{self.owner}{file} is a pointer of Git LFS instead of the file itself; run `git lfs pull` in"
                f" {self.folder}"
            )
        return UserError(f"{self.owner}{file} cannot be read ({error}); {self.remedy}")
