"""Find the vocoder of a speech tokenizer."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tolktrain.errors import UserError
from tolktrain.units.base import SpeechTokenizer, Vocoder
from tolktrain.units.load import describe_speech_tokenizer, kind_of, load_speech_tokenizer
from tolktrain.units.vocoders.description import VOCODER_FILE, read_vocoder_name
from tolktrain.units.vocoders.kind import FIRST_VOICE, VocoderKind, VocoderSource, Voice

MODULES = ("griffin_lim", "mimi", "unit_hifigan")  # of this package; each defines KIND
KINDS: Mapping[str, VocoderKind] = MappingProxyType(
    {kind.name: kind for kind in (importlib.import_module(f"tolktrain.units.vocoders.{m}").KIND for m in MODULES)}
)


def open_vocoder(
    tokenizer_folder: str | Path,
    folder: str | Path | None = None,
    voice: Voice = FIRST_VOICE,
    load_tokenizer: Callable[[], SpeechTokenizer] | None = None,
    device: str = "cpu",
) -> Callable[[], Vocoder] | None:
    """What loads the vocoder of a speech tokenizer; the files are checked already, as far as that needs no weights.

    Args:
        tokenizer_folder: folder of the speech tokenizer.
        folder: with vocoder.json; None for the vocoder in the tokenizer's folder, or else the one that needs no more
            than the tokenizer.
        voice: speaker and style.
        load_tokenizer: returns the tokenizer if it is loaded already.
        device: where a neural vocoder runs.

    Returns:
        None if no folder is named and the tokenizer has no vocoder.

    Raises:
        UserError: files are missing or damaged, the vocoder was trained on the units of another tokenizer, or it lacks
            the speaker or style.
    """
    tokenizer_kind = kind_of(tokenizer_folder)
    home = Path(tokenizer_folder if folder is None else folder)
    if folder is not None or (home / VOCODER_FILE).exists():
        name = read_vocoder_name(home)
        known = [other for other, kind in KINDS.items() if kind.maker is not None]
        if name not in known:
            names = " and ".join(map(repr, known))
            raise UserError(f"{home / VOCODER_FILE} names the vocoder {name!r}; this version knows {names}")
    elif tokenizer_kind.vocoder is None:
        return None
    else:
        name = tokenizer_kind.vocoder
    source = VocoderSource(
        home,
        describe_speech_tokenizer(tokenizer_folder),
        load_tokenizer or (lambda: load_speech_tokenizer(tokenizer_folder, device)),
        voice,
        device,
    )
    return KINDS[name].open(source)


def require_vocoder(
    tokenizer_folder: str | Path,
    folder: str | Path | None = None,
    voice: Voice = FIRST_VOICE,
    load_tokenizer: Callable[[], SpeechTokenizer] | None = None,
    device: str = "cpu",
) -> Callable[[], Vocoder]:
    """As `open_vocoder`, but raises `UserError` if there is no vocoder."""
    load = open_vocoder(tokenizer_folder, folder, voice, load_tokenizer, device)
    if load is None:
        raise UserError(
            f"{tokenizer_folder} holds a tokenizer of the kind {kind_of(tokenizer_folder).name!r}, which cannot turn"
            f" units into audio, and no {VOCODER_FILE}; convert a vocoder of its units with python -m tolktrain.units"
            f" vocoder {tokenizer_folder} --checkpoint FILE --config FILE"
        )
    return load


def load_vocoder(
    tokenizer_folder: str | Path,
    folder: str | Path | None = None,
    voice: Voice = FIRST_VOICE,
    load_tokenizer: Callable[[], SpeechTokenizer] | None = None,
    device: str = "cpu",
) -> Vocoder:
    """The vocoder of a speech tokenizer; arguments and errors as of `require_vocoder`."""
    return require_vocoder(tokenizer_folder, folder, voice, load_tokenizer, device)()
