"""What an audio file contains, by container: see `tolktrain.prepare.recordings.containers.content`."""

from collections.abc import Callable
from typing import BinaryIO

from tolktrain.files.reading import open_regular
from tolktrain.prepare.recordings.containers.chunks import aiff_content, caf_content, w64_content, wav_content
from tolktrain.prepare.recordings.containers.content import Content, past_tag, read_at
from tolktrain.prepare.recordings.containers.flac import flac_content
from tolktrain.prepare.recordings.containers.headers import au_content, sphere_content, voc_content
from tolktrain.prepare.recordings.containers.mpeg import mpeg_content
from tolktrain.prepare.recordings.containers.ogg import ogg_content

__all__ = ["READ_TO_THE_END", "Content", "content_of"]

_Examine = Callable[[BinaryIO, int, int], Content]  # of a file, where its content begins, and its size

# By libsndfile's name of the format. Containers that are missing here have no size that could be wrong.
_CONTAINERS: dict[str, _Examine] = {
    "AIFF": aiff_content,
    "AU": au_content,
    "CAF": caf_content,
    "FLAC": flac_content,
    "MP3": mpeg_content,
    "NIST": sphere_content,
    "OGG": ogg_content,
    "RF64": wav_content,
    "VOC": voc_content,
    "W64": w64_content,
    "WAV": wav_content,
    "WAVEX": wav_content,
}

READ_TO_THE_END = frozenset(("NIST", "VOC", "W64"))
"""Containers of which libsndfile may take what follows the audio for audio."""

# Files that libsndfile does not open may have joined contents too.
_MAGIC = {
    b"RIFF": "WAV",
    b"RIFX": "WAV",
    b"RF64": "RF64",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"NIST": "NIST",
    b"Crea": "VOC",
}


def content_of(path: str, container: str | None) -> Content:
    """What a file contains. `container` is libsndfile's name of its format, None if libsndfile did not open it.

    Raises OSError if it cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        begin = past_tag(file, 0, size) or 0
        examine = _CONTAINERS.get(container or _MAGIC.get(read_at(file, begin, 4), ""))
        return examine(file, begin, size) if examine is not None else Content()
