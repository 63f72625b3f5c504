"""Units of recordings, kept on disk by the digest of the recording and of the tokenizer.

A cache is a folder per tokenizer with safetensors files. Each process writes files of its own, so any number of
processes can share a cache.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tolktrain.files.reading import read_bytes
from tolktrain.files.writing import replace_file
from tolktrain.units.base import Frames

_LARGEST = 1 << 31  # bytes of a file
_NAMES = ("digests", "lengths", "units")

logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """The folder that is used if none is named: `tolktrain/units` in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return root / "tolktrain" / "units"


def content_key(content: bytes) -> str:
    """The digest of a recording: SHA-256 of its file."""
    return hashlib.sha256(content).hexdigest()


class UnitCache:
    """The units, repeats collapsed, that one tokenizer gives."""

    def __init__(self, folder: Path, tokenizer_sha256: str, num_codebooks: int) -> None:
        """Read what is there. Damaged files are passed over with a warning: their recordings are encoded again."""
        self.folder = folder / tokenizer_sha256
        self._known: dict[str, Frames] = {}
        self._new: dict[str, Frames] = {}
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            try:
                self._known |= _read(path, num_codebooks)
            except (OSError, ValueError) as error:
                logger.warning("%s is not used, and its recordings are encoded again: %s", path, error)

    def get(self, key: str) -> Frames | None:
        """The units [n, K] of a recording, or None."""
        return self._known.get(key)

    def add(self, key: str, units: Frames) -> None:
        """Keep units [n, K] until `save`."""
        self._known[key] = self._new[key] = units

    def save(self) -> None:
        """Write what was added since the last call, whole or not at all. Raises OSError with the name of the file."""
        if not self._new:
            return
        from safetensors.numpy import save

        self.folder.mkdir(parents=True, exist_ok=True)
        digests = np.frombuffer(bytes.fromhex("".join(self._new)), np.uint8).reshape(-1, 32)
        units = list(self._new.values())
        content = {
            "digests": np.ascontiguousarray(digests),
            "lengths": np.array([len(rows) for rows in units], np.int64),
            "units": np.ascontiguousarray(np.concatenate(units), np.uint16),
        }
        replace_file(self.folder / f"{secrets.token_hex(8)}.safetensors", save(content))
        self._new.clear()


def _read(path: Path, num_codebooks: int) -> Mapping[str, Frames]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(read_bytes(path, _LARGEST))
        digests, lengths, units = (tensors[name] for name in _NAMES)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"it is no cache of units ({error})") from None
    fits = (
        digests.dtype == np.uint8
        and digests.shape == (len(lengths), 32)
        and lengths.dtype == np.int64
        and lengths.ndim == 1
        and (lengths > 0).all()
        and units.dtype == np.uint16
        and units.shape == (int(lengths.sum()), num_codebooks)
    )
    if not fits:
        raise ValueError("its tensors do not fit together")
    ends = np.cumsum(lengths)
    return {
        digest.tobytes().hex(): units[end - length : end]
        for digest, length, end in zip(digests, lengths, ends, strict=True)
    }
