"""Find the speech tokenizer that a folder holds."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tolktrain.errors import UserError
from tolktrain.units.base import SpeechTokenizer
from tolktrain.units.description import DESCRIPTION_FILE, SpeechTokenizerInfo, read_description, read_name
from tolktrain.units.kind import TokenizerKind

MODULES = ("logmel", "hubert", "mimi")  # of this package; each defines KIND
KINDS: Mapping[str, TokenizerKind] = MappingProxyType(
    {kind.name: kind for kind in (importlib.import_module(f"tolktrain.units.{name}").KIND for name in MODULES)}
)


def load_speech_tokenizer(
    folder: str | Path, device: str = "cpu", batch_seconds: float | None = None
) -> SpeechTokenizer:
    """The tokenizer that speech_tokenizer.json in the folder names.

    Args:
        folder: where a tokenizer was saved.
        device: where a neural model runs: cpu, cuda, or auto for a GPU where there is one.
        batch_seconds: audio, padding included, that a neural model computes at a time; None: window by window on a CPU,
            240 s on a GPU.

    Raises:
        UserError: the folder's files are missing, damaged, unknown or do not belong together; or what they need is not
            installed.
    """
    return kind_of(folder).load(folder, device, batch_seconds)


def describe_speech_tokenizer(folder: str | Path) -> SpeechTokenizerInfo:
    """The entry in dataset.json of a folder's tokenizer, from speech_tokenizer.json alone: no weights are read.

    Raises `UserError` as `load_speech_tokenizer`, as far as that file shows.
    """
    kind = kind_of(folder)
    description = read_description(folder, kind.description, kind.name, kind.version)
    return SpeechTokenizerInfo(
        name=description.name,
        version=description.version,
        num_units=description.num_units,
        num_codebooks=description.num_codebooks,
        frames_per_second=description.frames_per_second,
        sha256=description.sha256,
    )


def kind_of(folder: str | Path) -> TokenizerKind:
    """The kind that speech_tokenizer.json names. Raises `UserError` if it is unknown or there is no such file."""
    name = read_name(folder)
    if name not in KINDS:
        *others, last = map(repr, KINDS)
        known = f"{', '.join(others)} and {last}"
        raise UserError(f"{Path(folder) / DESCRIPTION_FILE} names the tokenizer {name!r}; this version knows {known}")
    return KINDS[name]
