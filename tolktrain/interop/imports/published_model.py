"""The model in a checkpoint file of the authors of SmolTolk: its sizes, its switches, and its tensors.

The file contains switches and tensors, but neither the number of heads nor the rotary base: these are in config.json of
the backbone that the authors' code loads before it copies the tensors. Two settings of the computation cannot be read
from any file, see `Choices`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tolktrain.config.model import LayerPooling
from tolktrain.errors import UserError
from tolktrain.interop.imports.published_file import PublishedFile
from tolktrain.interop.published import POOLING, canonical_name
from tolktrain.interop.weights import expected_shapes
from tolktrain.model.architecture import AdapterAttention, Architecture
from tolktrain.model.llama import read_llama_config
from tolktrain.vocabulary import SPECIAL_TEXT_IDS

PAPER_ROPE_THETA = 100_000.0  # arXiv 2503.06211; the released code keeps the base of the backbone
_TEXT_HEAD, _TEXT_TABLE = "txt_unembed.weight", "txt_embed.weight"
_SPEECH_HEAD, _SPEECH_TABLE = "audio_unembed.0.weight", "audio_embed.0.weight"
_FREQUENCIES = re.compile(r"context_model\.(?:.*\.)?rotary_emb\.inv_freq")
# The settings of their model, and how they call them; without an entry the default of the released code applies.
_DEFAULTS: Mapping[str, Any] = {
    "n_codebooks": 1,
    "n_audio_in_layers": 0,
    "n_audio_out_layers": 0,
    "layer_wa_audio": False,
    "layer_selwa_audio": False,
    "selwa_in_layer": None,
    "selwa_linear": True,
    "selwa_downproj": False,
    "raw_speech_residual": False,
    "block_size": 2048,
}
_LARGEST_LOG = 700.0  # of a number that a float can hold
_LEAST_SPEECH_IDS = 3  # a unit, EOS and PAD


@dataclass(frozen=True)
class Choices:
    """What such a file does not say.

    `rope_theta` None is the base of the backbone's config.json, which the released code uses. The paper and the
    training configurations name 100000, but the released model ignores the entry.

    `adapter_attention` "runs" keeps the input adapter inside each speech segment, as the released code does.
    "published" is the attention of the earlier training code, which pairs the boundaries of segments one off.
    """

    rope_theta: float | None = None
    adapter_attention: AdapterAttention = "runs"


@dataclass(frozen=True)
class PublishedModel:
    """The architecture of a file, and its tensors by canonical name."""

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    sequence_length: int


def published_model(file: PublishedFile, backbone: str, choices: Choices) -> PublishedModel:
    """Interpret a file.

    Args:
        file: that was read.
        backbone: folder or hub id of the text model that it was trained from; its config.json is read.
        choices: of settings that are not in the file.

    Raises:
        UserError: a switch that this model does not have, by its name; tensors that are missing, unknown, or of other
            shapes than config.json of the backbone says.
    """
    arguments = {**_DEFAULTS, **file.arguments}
    sizes = read_llama_config(backbone)
    _refuse_switches(file, arguments, sizes["num_layers"])
    tensors = dict(file.tensors)
    _take_frequencies(file, tensors, sizes, choices)
    text_vocab, num_units = _vocabularies(file, arguments, sizes["text_vocab_size"])
    tied = _take_heads(file, tensors, text_vocab)
    if choices.rope_theta is not None:
        sizes["rope_theta"] = choices.rope_theta
    architecture = Architecture(
        **{**sizes, "tie_text_embeddings": tied},
        num_units=num_units,
        num_codebooks=1,
        input_adapter_layers=_count(file, arguments, "n_audio_in_layers"),
        output_adapter_layers=_count(file, arguments, "n_audio_out_layers"),
        layer_pooling=_pooling(arguments),
        residual=bool(arguments["raw_speech_residual"]),
        adapter_attention=choices.adapter_attention,
    )
    named = _canonical(file, tensors)
    _refuse_other_shapes(file, named, architecture, backbone)
    return PublishedModel(architecture, named, _count(file, arguments, "block_size"))


def variants(architecture: Architecture) -> list[Architecture]:
    """The model with each combination of the settings that no file contains, the given one first."""
    thetas = dict.fromkeys((architecture.rope_theta, PAPER_ROPE_THETA))
    masks: tuple[AdapterAttention, ...] = ("runs", "published") if architecture.input_adapter_layers else ("runs",)
    made = [replace(architecture, rope_theta=theta, adapter_attention=mask) for theta in thetas for mask in masks]
    return [architecture, *(other for other in made if other != architecture)]


def _refuse_switches(file: PublishedFile, arguments: Mapping[str, Any], num_layers: int) -> None:
    """Raise UserError for a switch that this model does not have."""
    names = " ".join(file.tensors)
    is_averaged = bool(arguments["layer_wa_audio"]) or not arguments["layer_selwa_audio"]
    found = {
        "n_codebooks": (arguments["n_codebooks"] not in (None, 1), "the released code has one codebook"),
        "selwa_linear": (
            bool(arguments["layer_selwa_audio"] and not arguments["selwa_linear"]) or "layer_selector.0." in names,
            "the selector of layers must be one linear layer",
        ),
        "selwa_downproj": (
            bool(arguments["selwa_downproj"]) or "selwa_downproj" in names,
            "the selector of layers must read whole hidden states",
        ),
        "selwa_in_layer": (
            not is_averaged and arguments["selwa_in_layer"] not in (None, num_layers, -1),
            "the selector of layers must read the weighted average or the last layer",
        ),
    }
    for key, (refused, reason) in found.items():
        if refused:
            raise UserError(
                f"{file.path}: model_args has {key}={arguments[key]!r}, a variant that this model does not have:"
                f" {reason}; import a checkpoint without it"
            )
    for key in ("audio_vocabsize", "txt_vocabsize"):
        if type(arguments.get(key)) is not int:
            raise UserError(
                f"{file.path}: model_args has {key}={arguments.get(key)!r}; expected a model of both text and speech"
            )


def _vocabularies(file: PublishedFile, arguments: Mapping[str, Any], text_vocab: int) -> tuple[int, int]:
    """Text ids and units, after special ids were compared."""
    wanted = {
        "txt_vocabsize": text_vocab + SPECIAL_TEXT_IDS,
        "bop_token": text_vocab,
        "eop_token": text_vocab + 1,
        "swt_token": text_vocab + 2,
        "audio_pad_token": arguments["audio_vocabsize"] - 1,
    }
    for key, expected in wanted.items():
        found = arguments.get(key)
        if found is not None and found != expected:
            where = (
                f"vocab_size {text_vocab} of the backbone's config.json and {SPECIAL_TEXT_IDS} special ids after it"
                if key != "audio_pad_token"
                else "PAD as the last speech id"
            )
            raise UserError(
                f"{file.path}: model_args has {key}={found!r}, expected {expected} ({where}); give --backbone the model"
                f" that it was trained from{_named_backbone(file)}"
            )
    if arguments["audio_vocabsize"] < _LEAST_SPEECH_IDS:
        raise UserError(f"{file.path}: model_args has audio_vocabsize={arguments['audio_vocabsize']}; expected above 2")
    return text_vocab, arguments["audio_vocabsize"] - 2


def _named_backbone(file: PublishedFile) -> str:
    name = file.arguments.get("backbone")
    return f" (model_args names {name!r:.100})" if isinstance(name, str) else ""


def _count(file: PublishedFile, arguments: Mapping[str, Any], key: str) -> int:
    value = arguments[key] or 0
    if type(value) is not int or not 0 <= value < 1 << 24:
        raise UserError(f"{file.path}: model_args has {key}={arguments[key]!r:.80}; expected a whole number from 0 on")
    return value


def _pooling(arguments: Mapping[str, Any]) -> LayerPooling:
    return POOLING[bool(arguments["layer_wa_audio"]), bool(arguments["layer_selwa_audio"])]


def _take_heads(file: PublishedFile, tensors: dict[str, Tensor], text_vocab: int) -> bool:
    """Drop heads that are copies of tables; keep another text head as `text_head.weight`. Whether it was tied."""
    for name in (_TEXT_TABLE, _SPEECH_TABLE):
        if name not in tensors:
            raise UserError(
                f"{file.path} lacks {name}; expected the whole model of the authors' code, with tables of text and"
                " speech"
            )
    speech_head = tensors.pop(_SPEECH_HEAD, None)
    if speech_head is not None and not _same(speech_head, tensors[_SPEECH_TABLE]):
        raise UserError(
            f"{file.path}: {_SPEECH_HEAD} differs from {_SPEECH_TABLE} (tie_audio_embeddings="
            f"{file.arguments.get('tie_audio_embeddings')!r}); the speech head of this model is its table: import a"
            " checkpoint with tie_audio_embeddings=True"
        )
    head, table = tensors.pop(_TEXT_HEAD, None), tensors[_TEXT_TABLE]
    if head is None or _same(head, table) or _same(head, table[:text_vocab]):
        return True
    if head.dim() != 2 or head.shape[0] not in (text_vocab, text_vocab + SPECIAL_TEXT_IDS):
        raise UserError(
            f"{file.path}: {_TEXT_HEAD} has shape {list(head.shape)}, expected {text_vocab} rows, or"
            f" {text_vocab + SPECIAL_TEXT_IDS} with those of the special ids"
        )
    tensors[_TEXT_HEAD] = head[:text_vocab]  # special ids are never predicted
    return False


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _take_frequencies(
    file: PublishedFile, tensors: dict[str, Tensor], sizes: Mapping[str, Any], choices: Choices
) -> None:
    """Drop rotary frequencies, which older versions of transformers save; they show the base that was used."""
    names = [name for name in tensors if _FREQUENCIES.fullmatch(name)]
    theta = choices.rope_theta or sizes["rope_theta"]
    for name in names:
        saved = tensors.pop(name).flatten()
        if sizes["rope_scaling"] is not None or saved.numel() < 2:
            continue
        second = float(saved[1])  # theta ** (-2 / head_dim)
        if not 0 < second < 1:
            raise UserError(f"{file.path}: {name} holds no rotary frequencies; download the file again")
        log_base = -math.log(second) * sizes["head_dim"] / 2
        if abs(log_base - math.log(theta)) > 1e-2:  # the tensor may be in bf16
            base = math.exp(min(log_base, _LARGEST_LOG))
            raise UserError(
                f"{file.path}: {name} was computed with the rotary base {base:.6g}, not {theta:g}; give --rope-theta"
                f" {base:.2g}, or the --backbone that it was trained from"
            )


def _canonical(file: PublishedFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        try:
            ours = canonical_name(name)
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from None
        if not tensor.is_floating_point():
            raise UserError(
                f"{file.path}: {name} has the type {str(tensor.dtype).removeprefix('torch.')}; quantized weights cannot"
                " be imported: take the checkpoint in bf16 or float32"
            )
        named[ours] = tensor.flatten() if ours == "pooling.layer_weights" else tensor
    return named


def _refuse_other_shapes(
    file: PublishedFile, named: Mapping[str, Tensor], architecture: Architecture, backbone: str
) -> None:
    """Compare names and shapes with the architecture."""
    expected = expected_shapes(architecture)
    missing, surplus = sorted(set(expected) - set(named)), sorted(set(named) - set(expected))
    for kind, names in (("lacks", missing), ("has no place for", surplus)):
        if names:
            more = f" and {len(names) - 1} more tensors" if names[1:] else ""
            what = f"{file.path} {kind}" if kind == "lacks" else f"the model of {file.path} {kind}"
            raise UserError(
                f"{what} {names[0]}{more}, by its model_args and config.json of --backbone {backbone}; give the"
                f" backbone that it was trained from{_named_backbone(file)}, or download the file again"
            )
    for name, shape in expected.items():
        if tuple(named[name].shape) != shape:
            raise UserError(
                f"{file.path}: {name} has shape {list(named[name].shape)}, but model_args and config.json of --backbone"
                f" {backbone} ask for {list(shape)}; give the backbone that it was trained from{_named_backbone(file)}"
            )
