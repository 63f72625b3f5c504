"""Copies of a model's tokenizers in its folder of weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tolktrain.data.text_tokenizer import TOKENIZER_FILE, load_text_tokenizer, tokenizer_folder
from tolktrain.errors import UserError
from tolktrain.files.writing import naming, sync_path, write_synced
from tolktrain.interop.weights import SPEECH_FOLDER
from tolktrain.model.architecture import Architecture
from tolktrain.units.description import DESCRIPTION_FILE
from tolktrain.units.load import describe_speech_tokenizer, kind_of
from tolktrain.units.vocoders.description import VOCODER_FILE
from tolktrain.units.vocoders.kind import Voice
from tolktrain.units.vocoders.load import require_vocoder
from tolktrain.units.vocoders.unit_hifigan import WEIGHTS_FILE

SETTINGS_FILE = "tokenizer_config.json"
_COPIED = (".json", ".safetensors")


def tokenizers_in(folder: Path) -> tuple[str | None, str | None]:
    """The text and the speech tokenizer that a folder of weights holds, as folders; None for one that it lacks."""
    text = str(folder) if (folder / TOKENIZER_FILE).is_file() else None
    speech = folder / SPEECH_FOLDER
    return text, str(speech) if (speech / DESCRIPTION_FILE).is_file() else None


def add_text_tokenizer(
    folder: Path, name: str, trained_with: str | None, architecture: Architecture
) -> tuple[int, str]:
    """Add a text tokenizer to a folder of weights; returns its EOS and its SHA-256.

    Args:
        folder: of the weights.
        name: folder or hub id of the tokenizer.
        trained_with: SHA-256 of the tokenizer of the data; None if it is not known.
        architecture: of the model.

    Raises:
        UserError: there is no such tokenizer, it is another one, or it has more ids than the model.
    """
    tokenizer = load_text_tokenizer(name)
    check_digest(trained_with, tokenizer.info.sha256, "text", name)
    if tokenizer.info.vocab_size > architecture.text_vocab_size:
        raise UserError(
            f"the text tokenizer {name} has {tokenizer.info.vocab_size} ids, more than the model's"
            f" {architecture.text_vocab_size}; name the tokenizer that the data sets were made with"
            " (data.text_tokenizer in config.yaml of a run)"
        )
    _copy(tokenizer_folder(name) / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    eos = tokenizer.tokenizer.id_to_token(tokenizer.info.eos_id)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    write_synced(folder / SETTINGS_FILE, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    return tokenizer.info.eos_id, tokenizer.info.sha256


def add_speech_tokenizer(folder: Path, name: str, trained_with: str | None, architecture: Architecture) -> str:
    """Add the description and the centroids of a speech tokenizer, and its model if its folder contains one; returns
    its SHA-256. Arguments and errors as `add_text_tokenizer`."""
    kind, info = kind_of(name), describe_speech_tokenizer(name)
    check_digest(trained_with, info.sha256, f"speech ({kind.name})", name)
    if (info.num_units, info.num_codebooks) != (architecture.num_units, architecture.num_codebooks):
        raise UserError(
            f"the speech tokenizer {name} has {info.num_units} units and {info.num_codebooks} codebooks, the model"
            f" {architecture.num_units} and {architecture.num_codebooks}; name the tokenizer of the data sets"
            " (data.speech_tokenizer in config.yaml of a run)"
        )
    target = folder / SPEECH_FOLDER
    _copy_files(Path(name), target)
    model = _own_model(Path(name))
    if model is not None:
        _copy_files(Path(name) / model, target / model)
    return info.sha256


def add_vocoder(folder: Path, name: str) -> None:
    """Add the files of a vocoder to the speech tokenizer of a folder of weights, in place of those that it has.

    Raises UserError if there is no vocoder, or it is of the units of another tokenizer.
    """
    target = folder / SPEECH_FOLDER
    require_vocoder(target, name)  # before its files are read
    for file in (VOCODER_FILE, WEIGHTS_FILE):
        (target / file).unlink(missing_ok=True)
        _copy(Path(name) / file, target / file)
    sync_path(target)


def check_vocoder(folder: Path, voice: Voice) -> Mapping[str, Any] | None:
    """Read the vocoder of a folder of weights, with its speaker and style; vocoder.json, None if it has no file.

    Raises UserError if its files are damaged, or it lacks the voice.
    """
    speech = folder / SPEECH_FOLDER
    if not (speech / VOCODER_FILE).is_file():
        return None
    require_vocoder(speech, voice=voice)()
    found: Mapping[str, Any] = json.loads((speech / VOCODER_FILE).read_text(encoding="utf-8"))
    return found


def check_digest(trained_with: str | None, digest: str, kind: str, name: str) -> None:
    """Raise UserError if a tokenizer is not the one of the data."""
    if trained_with is not None and trained_with != digest:
        raise UserError(
            f"the {kind} tokenizer {name} has sha256 {digest[:12]}, the model was trained with {trained_with[:12]};"
            " name that tokenizer's folder in config.yaml of the run"
        )


def speech_model_of(folder: Path) -> str | None:
    """The model that a speech tokenizer computes with, as its description names it: hub id or folder; None without."""
    description: Mapping[str, object] = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    model = description.get("model")
    return str(model.get("path")) if isinstance(model, dict) else None


def _own_model(folder: Path) -> str | None:
    """The model's folder, if it is inside of the tokenizer's."""
    path = speech_model_of(folder)
    if path is None or not path.startswith("./"):
        return None
    inside = (folder / path).resolve()
    return path.removeprefix("./") if inside.is_relative_to(folder.resolve()) and inside.is_dir() else None


def _copy_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _COPIED:
            _copy(file, target / file.name)
    sync_path(target)


def _copy(source: Path, target: Path) -> None:
    with naming(target):
        shutil.copyfile(source, target)
    sync_path(target)
