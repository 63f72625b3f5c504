"""Find the speech tokenizer that a folder holds."""

from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.units import hubert, logmel, mimi
from tolktrain.units.base import SpeechDecoder, SpeechTokenizer
from tolktrain.units.description import DESCRIPTION_FILE, SpeechTokenizerInfo, read_description, read_name


def load_speech_tokenizer(
    folder: str | Path, device: str = "cpu", batch_seconds: float | None = None
) -> SpeechTokenizer:
    """The tokenizer that speech_tokenizer.json in the folder names.

    Args:
        folder: where a tokenizer was saved.
        device: where a neural model runs: cpu, cuda, or auto for a GPU where there is one.
        batch_seconds: sound, padding included, that a neural model computes at a time; None: window by window on a CPU,
            240 s on a GPU.

    Raises:
        UserError: the folder's files are missing, damaged, unknown or do not belong together; or what they need is not
            installed.
    """
    name = read_name(folder)
    if name == logmel.NAME:
        return logmel.LogMelTokenizer.load(folder)
    if name == hubert.NAME:
        return hubert.HubertTokenizer.load(folder, device, batch_seconds)
    if name == mimi.NAME:
        return mimi.MimiTokenizer.load(folder, device, batch_seconds)
    raise _unknown(folder, name)


def load_speech_decoder(folder: str | Path, device: str = "cpu") -> SpeechDecoder:
    """As `load_speech_tokenizer`, for a tokenizer that gives sound back. Raises `UserError` for one that does not."""
    if read_name(folder) == hubert.NAME:
        raise UserError(
            f"{folder} holds a tokenizer of the kind {hubert.NAME!r}, which cannot turn units into sound; this needs"
            f" one of {logmel.NAME!r} or {mimi.NAME!r}, and a model trained on its units"
        )
    tokenizer = load_speech_tokenizer(folder, device)
    assert isinstance(tokenizer, SpeechDecoder)
    return tokenizer


def describe_speech_tokenizer(folder: str | Path) -> SpeechTokenizerInfo:
    """What dataset.json says about a folder's tokenizer, from speech_tokenizer.json alone: no weights are read.

    Raises `UserError` as `load_speech_tokenizer`, as far as that file shows.
    """
    name = read_name(folder)
    description: logmel.LogMelDescription | hubert.HubertDescription | mimi.MimiDescription
    if name == logmel.NAME:
        description = read_description(folder, logmel.LogMelDescription, name, logmel.VERSION)
    elif name == hubert.NAME:
        description = read_description(folder, hubert.HubertDescription, name, hubert.VERSION)
    elif name == mimi.NAME:
        description = read_description(folder, mimi.MimiDescription, name, mimi.VERSION)
    else:
        raise _unknown(folder, name)
    return SpeechTokenizerInfo(
        name=description.name,
        version=description.version,
        num_units=description.num_units,
        num_codebooks=description.num_codebooks,
        frames_per_second=description.frames_per_second,
        sha256=description.sha256,
    )


def _unknown(folder: str | Path, name: str) -> UserError:
    known = f"{logmel.NAME!r}, {hubert.NAME!r} and {mimi.NAME!r}"
    return UserError(f"{Path(folder) / DESCRIPTION_FILE} names the tokenizer {name!r}; this version knows {known}")
