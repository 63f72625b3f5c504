"""The tokenizers that a data set was made with: given, or found next to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tolktrain.data.records import Array, DatasetInfo
from tolktrain.errors import UserError
from tolktrain.files.names import inside
from tolktrain.files.reading import file_sha256
from tolktrain.files.writing import write_synced
from tolktrain.storage.open import open_storage
from tolktrain.units.base import Vocoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_FILE = "tokenizer.json"
SPEECH_FILE = "speech_tokenizer.json"
TEXT_FOLDER, SPEECH_FOLDER = "text_tokenizer", "speech_tokenizer"
_MOST_FILES, _MOST_BYTES = 100, 1 << 30  # of both together, because a stranger's bucket determines how many there are


class OtherTokenizerError(UserError):
    """A tokenizer differs from the one that a data set was made with."""


@dataclass(frozen=True)
class TextReader:
    """Turns text ids into text; into the numbers themselves without a tokenizer."""

    tokenizer: "Tokenizer | None"

    def __call__(self, ids: Array) -> str:
        """Text of consecutive ids, without the space before it."""
        if self.tokenizer is None:
            return " ".join(str(number) for number in ids.tolist())
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return text.strip()


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a data set, if they were found."""

    text: TextReader
    vocoder: Vocoder | None  # of the speech tokenizer
    text_note: str  # where the tokenizer is, or why there is none
    speech_note: str


def find_tokenizers(
    info: DatasetInfo, folders: Sequence[Path], text_folder: Path | None, speech_folder: Path | None
) -> Tokenizers:
    """The tokenizers in the given folders, or else in text_tokenizer and speech_tokenizer in one of `folders`.

    If a speech tokenizer in `folders` cannot be used here, it is left out, and the note gives the reason.

    Raises `UserError` if a tokenizer is not the one that dataset.json names, or a given one is unreadable.
    """
    text, text_note = _text(info, text_folder or _first(folders, TEXT_FOLDER, TEXT_FILE))
    if speech_folder is not None:
        speech, speech_note = _speech(info, speech_folder)
    else:
        speech, speech_note = _found_speech(info, _first(folders, SPEECH_FOLDER, SPEECH_FILE))
    return Tokenizers(TextReader(text), speech, text_note, speech_note)


def fetch_tokenizers(address: str, folder: Path) -> None:
    """Copy the tokenizers next to a remote data set into a folder, if there are any.

    Raises `UserError` when the storage cannot be read, lists a name that leads out of the folder, or holds more there
    than tokenizers have.
    """
    parent = address.removesuffix("/").rpartition("/")[0]
    if parent.endswith("/"):  # the data set is a whole bucket
        return
    storage = open_storage(parent)
    names = [name for part in (TEXT_FOLDER, SPEECH_FOLDER) for name in storage.names(f"{part}/")]
    if len(names) > _MOST_FILES:
        raise UserError(
            f"{storage.address} has {len(names)} files of tokenizers, more than the {_MOST_FILES} that are fetched;"
            " name folders here with --text-tokenizer and --speech-tokenizer"
        )
    left = _MOST_BYTES
    for name in names:
        if name.endswith("/"):  # what browsers of buckets make for an empty folder
            continue
        path = inside(folder, name, f"{storage.address}: the list of its files")
        content = storage.read(name, left)
        if content is not None:
            left -= len(content)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, content)


def _first(folders: Sequence[Path], folder: str, file: str) -> Path | None:
    return next((path / folder for path in folders if (path / folder / file).is_file()), None)


def _text(info: DatasetInfo, folder: Path | None) -> tuple["Tokenizer | None", str]:
    if info.text is None:
        return None, "the set has no text"
    if folder is None:
        return None, "none found next to the data, so ids are shown as numbers; name its folder with --text-tokenizer"
    from tolktrain.data.text_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    digest = file_sha256(folder / TEXT_FILE)
    _check_digest(folder / TEXT_FILE, digest, info.text.sha256, info, "--text-tokenizer")
    return tokenizer, str(folder)


def _found_speech(info: DatasetInfo, folder: Path | None) -> tuple[Vocoder | None, str]:
    if folder is None:
        return None, "none found next to the data; name its folder with --speech-tokenizer to make audio"
    try:
        return _speech(info, folder)
    except OtherTokenizerError:
        raise
    except UserError as error:
        return None, f"not usable: {error}"


def _speech(info: DatasetInfo, folder: Path) -> tuple[Vocoder | None, str]:
    if info.speech is None:
        return None, "the set has no speech"
    from tolktrain.units.load import describe_speech_tokenizer
    from tolktrain.units.vocoders.load import load_vocoder

    _check_digest(folder, describe_speech_tokenizer(folder).sha256, info.speech.sha256, info, "--speech-tokenizer")
    return load_vocoder(folder), str(folder)


def _check_digest(path: Path, found: str, expected: str, info: DatasetInfo, option: str) -> None:
    if found != expected:
        raise OtherTokenizerError(
            f"{path} is not the tokenizer that the data set {info.name!r} was made with: its sha256 is {found[:12]}...,"
            f" dataset.json says {expected[:12]}...; name the folder of the right one with {option}"
        )
