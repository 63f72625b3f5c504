"""The kind of preparation that a configuration asks for, and the tokenizers it uses."""

from collections.abc import Callable
from pathlib import Path

from tolktrain.config.prepare import PrepareConfig
from tolktrain.prepare.kind import Kind
from tolktrain.units.description import CENTROIDS_FILE, DESCRIPTION_FILE

TEXT_FOLDER = "text_tokenizer"
SPEECH_FOLDER = "speech_tokenizer"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def make_kind(config: PrepareConfig, say: Callable[[str], None] | None = None) -> Kind:
    """The kind of preparation. A speech tokenizer that is to be fitted is fitted first, which `say` tells.

    Raises `UserError` when a tokenizer, a model or the input cannot be read.
    """
    if config.recordings is not None:
        from tolktrain.prepare.recordings.fitting import fit_if_missing
        from tolktrain.prepare.recordings.kind import RecordingsKind

        fit_if_missing(config, say or (lambda text: None))
        return RecordingsKind(config)
    if config.published is not None:
        from tolktrain.prepare.published.kind import PublishedKind

        return PublishedKind(config)
    from tolktrain.prepare.text.kind import TextKind

    return TextKind(config)


def tokenizer_files(config: PrepareConfig) -> list[tuple[Path, str]]:
    """Files of the tokenizers, and their names in the output."""
    files: list[tuple[Path, str]] = []
    if config.text_tokenizer is not None:
        from tolktrain.data.text_tokenizer import tokenizer_folder

        folder = tokenizer_folder(config.text_tokenizer)
        # The folder may be that of a whole model.
        files += [(folder / name, f"{TEXT_FOLDER}/{name}") for name in TEXT_FILES if (folder / name).is_file()]
    speech: str | None = None
    if config.recordings is not None:
        speech = config.recordings.speech_tokenizer.path
    elif config.published is not None:
        speech = config.published.speech_tokenizer
    if speech is not None:
        # HuBERT's and Mimi's own files stay where speech_tokenizer.json says.
        paths = [Path(speech) / name for name in (DESCRIPTION_FILE, CENTROIDS_FILE)]
        files += [(path, f"{SPEECH_FOLDER}/{path.name}") for path in paths if path.is_file()]
    return files
