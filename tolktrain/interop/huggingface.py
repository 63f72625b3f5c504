"""A text backbone from a Hugging Face checkpoint of the Llama family."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from tolktrain.config.model import ModelConfig
from tolktrain.errors import UserError
from tolktrain.interop.backbone_problems import (
    note_adapter,
    refuse_adapters,
    refuse_missing,
    refuse_other_head,
    refuse_other_shape,
    refuse_quantized,
)
from tolktrain.interop.safetensors_folder import TensorFolder
from tolktrain.model.architecture import Architecture
from tolktrain.model.initialization import TEXT_TABLE, initial_text_table, initialize_parameters
from tolktrain.model.llama import backbone_folder
from tolktrain.model.lora import is_lora
from tolktrain.model.parameter_layout import Shape, canonical_shapes, copy_canonical
from tolktrain.model.smoltolk import SmolTolk

_TEXT_HEAD = "text_head.weight"
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
    initialize_parameters(model, seed=0, skip=backbone_names(model))
    return model


def backbone_names(model: SmolTolk) -> list[str]:
    """Canonical names of the tensors of a model that a backbone provides, copies on this rank included."""
    return [name for name in canonical_shapes(model, with_copies=True) if is_backbone(name)]


def load_backbone_into(model: SmolTolk, path: str, seed: int = 0) -> None:
    """Copy a checkpoint's weights into the backbone of a model, or into this rank's part of it.

    The rows of special ids, which the checkpoint does not have, are initialized: those of the three are drawn, those of
    named tokens are the mean of the rows of text.

    Args:
        model: of the architecture that the checkpoint's config.json describes.
        path: folder or hub id.
        seed: of the special ids' rows.

    Raises:
        UserError: no such checkpoint, none of the Llama family, weights missing, unreadable, quantized or not finite,
            files that contradict each other, or shapes that disagree with config.json.
    """
    folder = backbone_folder(path, weights=True)
    sizes = model.architecture
    shapes = canonical_shapes(model, with_copies=True)
    expected = {name: shape for name, shape in shapes.items() if is_backbone(name)}
    if TEXT_TABLE in expected:
        expected[TEXT_TABLE] = (sizes.text_vocab_size, sizes.hidden_size)
    found = _read(folder, expected, sizes)
    if TEXT_TABLE in found:
        found[TEXT_TABLE] = initial_text_table(sizes, seed, found[TEXT_TABLE].float())
    copy_canonical(model, found)


def is_backbone(name: str) -> bool:
    """Whether a canonical tensor is one that a backbone provides."""
    return (name.startswith("backbone.") and not is_lora(name)) or name in (TEXT_TABLE, _TEXT_HEAD)


def checkpoint_name(canonical: str) -> str:
    """Name of a backbone's tensor in a Hugging Face checkpoint, from its canonical name."""
    if canonical == TEXT_TABLE:
        return "model.embed_tokens.weight"
    if canonical == _TEXT_HEAD:
        return "lm_head.weight"
    return "model." + canonical.removeprefix("backbone.")


def _read(folder: Path, expected: Mapping[str, Shape], sizes: Architecture) -> dict[str, Tensor]:
    """The tensors of a checkpoint by canonical name; all are checked before the first one is read."""
    names = {canonical: checkpoint_name(canonical) for canonical in expected}
    with TensorFolder.open(folder, "model.backbone: ", "download the checkpoint again") as tensors:
        refuse_quantized(tensors)
        refuse_adapters(tensors)
        refuse_missing(tensors, names.values())
        surplus = sorted(name for name in tensors if _is_surplus(name, names.values(), sizes.num_layers))
        if surplus:
            raise UserError(
                f"model.backbone: {folder} holds {surplus[0]}, for which its config.json has no place;"
                " config.json and weights belong to different models"
            )
        for canonical, name in names.items():
            refuse_other_shape(tensors, name, expected[canonical], sizes)
        if sizes.tie_text_embeddings and TEXT_TABLE in expected:
            refuse_other_head(tensors)
        note_adapter(folder)
        return {canonical: tensors[name] for canonical, name in names.items()}


def _is_surplus(name: str, wanted: Collection[str], num_layers: int) -> bool:
    """Whether a weight of a checkpoint's layers has no place in the model; `wanted` may be those of some layers."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
    if layer is None or name in wanted or name.endswith(_IGNORED_ENDINGS):
        return False
    kinds = {other.split(".", 3)[-1] for other in wanted if other.startswith("model.layers.")}
    return int(layer[1]) >= num_layers or bool(kinds) and layer[2] not in kinds
