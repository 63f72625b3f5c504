"""Find the speech tokenizer that a folder holds."""

import json
from pathlib import Path

from tolktrain.config.errors import UserError
from tolktrain.units import logmel
from tolktrain.units.base import SpeechDecoder


def load_speech_tokenizer(folder: str | Path) -> SpeechDecoder:
    """The tokenizer that speech_tokenizer.json in the folder names. Raises `UserError` if it is missing or unknown."""
    path = Path(folder) / logmel.DESCRIPTION_FILE
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["name"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); data.speech_tokenizer must name the tokenizer's folder"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a JSON object with a name; restore it from its source") from None
    if name == logmel.NAME:
        return logmel.LogMelTokenizer.load(folder)
    raise UserError(f"{path} names the tokenizer {name!r}; this version knows {logmel.NAME!r}")
