"""The files that evaluation and generation read besides data sets, checked without importing anything heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.files.names import inside
from tolktrain.files.reading import read_json

PROMPTS_FILE = "prompts.json"
TEXT_TOKENIZER_FILE = "tokenizer.json"
SPEECH_TOKENIZER_FILE = "speech_tokenizer.json"


def check_inputs(config: Config) -> None:
    """Check that the prompts and tokenizers of the configuration exist; absent entries are not checked.

    Raises UserError when a file is missing, prompts.json is not as `read_entries` expects it, or the speech tokenizer
    has no vocoder.
    """
    if config.evaluation.prompts is not None:
        folder = Path(config.evaluation.prompts)
        for entry in read_entries(folder):
            if not entry_path(folder, entry).is_file():
                raise UserError(
                    f"{folder / entry['file']} does not exist, but {folder / PROMPTS_FILE} lists it; restore it, or"
                    " remove its entry"
                )
    tokenizers = {
        "data.speech_tokenizer": (config.data.speech_tokenizer, SPEECH_TOKENIZER_FILE),
        "data.text_tokenizer": (config.data.text_tokenizer, TEXT_TOKENIZER_FILE),
    }
    for key, (name, file) in tokenizers.items():
        if name is not None and not (Path(name) / file).is_file():
            raise UserError(f"{Path(name) / file} does not exist; {key} must name a folder with {file}")
    vocoder = config.data.vocoder
    if config.data.speech_tokenizer is not None:
        from tolktrain.units.vocoders.kind import Voice
        from tolktrain.units.vocoders.load import require_vocoder

        require_vocoder(config.data.speech_tokenizer, vocoder.path, Voice(vocoder.speaker, vocoder.style))


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of the folder's prompts.json, at least one, each with a `file` inside the folder, whose stem is its
    alone.

    Raises UserError when prompts.json is missing, unreadable or something else.
    """
    path = folder / PROMPTS_FILE
    try:
        entries = read_json(path)
    except OSError:
        raise UserError(
            f"{path} cannot be read; evaluation.prompts must name a folder with WAV files and {PROMPTS_FILE}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected a list of objects with the key 'file'") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a list of objects with the key 'file', at least one")
    stems: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise UserError(f"{path} must hold a list of objects with the key 'file', the name of a WAV file")
        stem = entry_path(folder, entry).stem
        if stem in stems:
            raise UserError(
                f"{path} lists {stems[stem]} and {entry['file']}, whose samples would have the same names"
                f" ({stem}-prompt.wav); give every prompt a file name of its own"
            )
        stems[stem] = entry["file"]
    return entries


def entry_path(folder: Path, entry: Mapping[str, Any]) -> Path:
    """The file of an entry. Raises UserError unless it is in the folder."""
    return inside(folder, entry["file"], folder / PROMPTS_FILE)
