"""A text backbone from a Hugging Face checkpoint of the Llama family."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tolktrain.config.model import ModelConfig
from tolktrain.errors import UserError
from tolktrain.files.names import files_inside
from tolktrain.files.reading import TABLE_BYTES, read_json, require_regular
from tolktrain.model.architecture import Architecture
from tolktrain.model.initialization import initial_value, initialize_parameters
from tolktrain.model.llama import backbone_folder
from tolktrain.model.parameter_layout import Shape, canonical_shapes, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import SPECIAL_TEXT_IDS

_INDEX = "model.safetensors.index.json"
_TEXT_TABLE, _TEXT_HEAD = "text_embedding.weight", "text_head.weight"
# Some exporters keep these; they follow from config.json and are computed again.
_IGNORED_ENDINGS = ("rotary_emb.inv_freq",)


def load_backbone(path: str) -> SmolTolk:
    """A float32 model in one process whose backbone is a Hugging Face checkpoint; the speech parts are random.

    Args:
        path: folder with config.json and *.safetensors, or a hub id.

    Raises:
        UserError: see `load_backbone_into`.
    """
    model = SmolTolk(Architecture.from_config(ModelConfig(backbone=path)), seed=None)
    load_backbone_into(model, path)
    backbone = [name for name in canonical_shapes(model) if _is_backbone(name)]
    initialize_parameters(model, seed=0, skip=backbone)
    return model


def load_backbone_into(model: SmolTolk, path: str, seed: int = 0) -> None:
    """Copy a checkpoint's weights into the backbone of a model, or into this rank's part of it.

    The rows of the three special ids, which the checkpoint does not have, are drawn afresh.

    Args:
        model: of the architecture that the checkpoint's config.json describes.
        path: folder or hub id.
        seed: of the special ids' rows.

    Raises:
        UserError: no such checkpoint, none of the Llama family, weights missing or unreadable, or shapes that
            disagree with config.json.
    """
    folder = backbone_folder(path, weights=True)
    shapes = canonical_shapes(model, with_copies=True)
    expected = {name: shape for name, shape in shapes.items() if _is_backbone(name)}
    if _TEXT_TABLE in expected:
        rows, width = expected[_TEXT_TABLE]
        expected[_TEXT_TABLE] = (rows - SPECIAL_TEXT_IDS, width)
    sizes = model.architecture
    found = _read(folder, expected, sizes.num_layers)
    if _TEXT_TABLE in found:
        fresh = initial_value(
            _TEXT_TABLE, shapes[_TEXT_TABLE], "normal", seed, sizes.initializer_range, sizes.num_layers
        )
        table = found[_TEXT_TABLE].to(fresh.dtype)
        found[_TEXT_TABLE] = torch.cat((table, fresh[-SPECIAL_TEXT_IDS:]))
    copy_canonical(model, found)


def _is_backbone(name: str) -> bool:
    return name.startswith("backbone.") or name in (_TEXT_TABLE, _TEXT_HEAD)


def _checkpoint_name(canonical: str) -> str:
    if canonical == _TEXT_TABLE:
        return "model.embed_tokens.weight"
    if canonical == _TEXT_HEAD:
        return "lm_head.weight"
    return "model." + canonical.removeprefix("backbone.")


def _read(folder: Path, expected: Mapping[str, Shape], num_layers: int) -> dict[str, Tensor]:
    files = _files_by_name(folder)
    names = {canonical: _checkpoint_name(canonical) for canonical in expected}
    missing = sorted(name for name in names.values() if name not in files)
    if missing:
        raise UserError(
            f"model.backbone: {folder} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if missing[1:] else "")
            + " that its config.json calls for; download the checkpoint again"
        )
    surplus = sorted(name for name in files if _is_surplus(name, names.values(), num_layers))
    if surplus:
        raise UserError(
            f"model.backbone: {folder} holds {surplus[0]}, for which its config.json has no place;"
            " config.json and weights belong to different models"
        )
    result: dict[str, Tensor] = {}
    for file in sorted({files[name] for name in names.values()}):
        wanted = {canonical: name for canonical, name in names.items() if files[name] == file}
        result.update(_read_file(file, wanted, expected))
    return result


def _read_file(file: Path, wanted: Mapping[str, str], expected: Mapping[str, Shape]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    try:
        require_regular(file)
        with safe_open(file, "pt") as shard:
            for canonical, name in wanted.items():
                shape = tuple(shard.get_slice(name).get_shape())
                if shape != expected[canonical]:
                    raise UserError(
                        f"model.backbone: {name} in {file} has shape {list(shape)}, but config.json asks for"
                        f" {list(expected[canonical])}; config.json and weights belong to different models"
                    )
                result[canonical] = shard.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.backbone: {file} cannot be read ({error}); download the checkpoint again") from error
    return result


def _is_surplus(name: str, wanted: Collection[str], num_layers: int) -> bool:
    """Whether a weight of a checkpoint's layers has no place in the model; `wanted` may be those of some layers."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
    if layer is None or name in wanted or name.endswith(_IGNORED_ENDINGS):
        return False
    kinds = {other.split(".", 3)[-1] for other in wanted if other.startswith("model.layers.")}
    return int(layer[1]) >= num_layers or bool(kinds) and layer[2] not in kinds


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / _INDEX
    if index.exists():
        try:
            table = dict(read_json(index, TABLE_BYTES)["weight_map"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"model.backbone: {index} is no index of shards ({error}); download the checkpoint again"
            ) from error
        return files_inside(folder, table, index)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model.backbone: {folder} holds no *.safetensors file; save the checkpoint with safetensors (pickled *.bin"
            " files are not read) or download it again"
        )
    result: dict[str, Path] = {}
    for file in files:
        try:
            require_regular(file)
            with safe_open(file, "pt") as shard:
                result.update(dict.fromkeys(shard.keys(), file))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"model.backbone: {file} cannot be read ({error}); download the checkpoint again"
            ) from error
    return result
