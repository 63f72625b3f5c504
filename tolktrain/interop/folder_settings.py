"""Settings that a folder of weights keeps of its run: the voice of its vocoder, and how ids are drawn."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tolktrain.files.reading import read_json
from tolktrain.files.writing import write_synced
from tolktrain.units.vocoders.kind import Voice

GENERATION_FILE = "generation_config.json"
PROCESSOR_FILE = "processor_config.json"
_VOICE = "voice"


def read_settings(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if there is none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def voice_in(folder: Path) -> Voice:
    """Speaker and style that the export of a run has recorded in its folder."""
    known = read_settings(folder / PROCESSOR_FILE).get(_VOICE)
    found = known if isinstance(known, dict) else {}
    return Voice(*(None if found.get(key) is None else str(found[key]) for key in ("speaker", "style")))


def copy_settings(source: Path, folder: Path, has_same_vocoder: bool) -> None:
    """Keep the settings of a folder of weights in a copy of it, where further exports find them."""
    drawing = read_settings(source / GENERATION_FILE)
    if drawing:
        write_json(folder / GENERATION_FILE, drawing)
    voice = read_settings(source / PROCESSOR_FILE).get(_VOICE)
    if voice is not None and has_same_vocoder:
        write_json(folder / PROCESSOR_FILE, {_VOICE: voice})


def write_json(path: Path, content: Any) -> None:
    """Write a small new file. Raises OSError with its name."""
    write_synced(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
