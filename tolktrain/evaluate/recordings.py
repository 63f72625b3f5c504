"""From the recordings of benchmarks to units."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.config.prepare import BoundsConfig
from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Audio, AudioFile
from tolktrain.evaluate.unit_cache import UnitCache, content_key
from tolktrain.files.reading import read_bytes
from tolktrain.parallel.collectives import all_gather_objects
from tolktrain.prepare.recordings.audio import AudioReader, resampled
from tolktrain.prepare.utterances import EntryError, Utterance
from tolktrain.units.base import Frames, Samples, SpeechTokenizer, collapse

_LARGEST_FILE = 1 << 30  # bytes
_MOST_SAMPLES = 1 << 28
_SAVED_EVERY = 2000  # recordings


@dataclass(frozen=True, eq=False)
class Encoded:
    """Units [n, K] of recordings, and why others have none."""

    units: dict[Audio, Frames]
    unreadable: dict[Audio, str]
    num_encoded: int  # that were not in the cache


def encode_recordings(
    recordings: Sequence[Audio],
    tokenizer: Callable[[], SpeechTokenizer],
    cache: UnitCache,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded:
    """The units of all recordings, on every rank. Collective if there are several; each encodes a part.

    Args:
        recordings: without repetition, in the same order on all ranks.
        tokenizer: loads it; called if a recording is not in the cache.
        cache: of this tokenizer.
        rank: of this process.
        world_size: number of processes.
        progress: called with the number of recordings done on this rank, and their total.

    Raises:
        UserError: the tokenizer cannot be loaded, or a library is missing.
    """
    worker = _Worker(tokenizer, cache)
    mine = recordings[rank::world_size]
    units: list[Frames | str] = []
    failure = None
    try:
        for place, recording in enumerate(mine):
            units.append(worker.units(recording))
            if worker.num_encoded % _SAVED_EVERY == 0:
                cache.save()
            progress(place + 1, len(mine))
    except UserError as error:
        failure = str(error)
    finally:
        worker.close()
        cache.save()
    gathered = all_gather_objects((units, worker.num_encoded, failure))
    for *_, message in gathered:
        if message is not None:
            raise UserError(message)
    found = {
        recording: result
        for first, (results, *_) in enumerate(gathered)
        for recording, result in zip(recordings[first::world_size], results, strict=True)
    }
    return Encoded(
        units={recording: result for recording, result in found.items() if not isinstance(result, str)},
        unreadable={recording: result for recording, result in found.items() if isinstance(result, str)},
        num_encoded=sum(count for _, count, _ in gathered),
    )


class _Worker:
    """Reads and encodes recordings one after the other."""

    def __init__(self, tokenizer: Callable[[], SpeechTokenizer], cache: UnitCache) -> None:
        self._make = tokenizer
        self._tokenizer: SpeechTokenizer | None = None
        self._cache = cache
        # A benchmark's recordings are scored as they are, however quiet.
        self._reader = AudioReader(bounds=BoundsConfig(min_level_db=None, max_cancellation_db=None))
        self._table: tuple[tuple[Path, str], Any] | None = None
        self.num_encoded = 0

    def close(self) -> None:
        """Close what is open."""
        self._reader.close()

    def units(self, recording: Audio) -> Frames | str:
        """The units, or why there are none."""
        try:
            content = self._content(recording)
            key = content_key(content)
            known = self._cache.get(key)
            if known is not None:
                return known
            if self._tokenizer is None:
                self._tokenizer = self._make()
            samples = self._samples(recording, content, self._tokenizer.sample_rate)
        except EntryError as error:
            return error.detail
        except OSError as error:
            return error.strerror or str(error)
        units, _ = collapse(self._tokenizer.encode(samples))
        if not len(units):
            return "it is too short to have units"
        self._cache.add(key, units)
        self.num_encoded += 1
        return units

    def _content(self, recording: Audio) -> bytes:
        if isinstance(recording, AudioFile):
            return read_bytes(recording.path, _LARGEST_FILE)
        column = self._column(recording.path, recording.column)
        cell = column[recording.row].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise OSError(f"row {recording.row} of column {recording.column} holds no audio")
        return content

    def _column(self, path: Path, name: str) -> Any:
        if self._table is None or self._table[0] != (path, name):
            import pyarrow.parquet

            self._table = ((path, name), pyarrow.parquet.read_table(path, columns=[name])[name])
        return self._table[1]

    def _samples(self, recording: Audio, content: bytes, sample_rate: int) -> Samples:
        if isinstance(recording, AudioFile):
            path = str(recording.path)
            return self._reader.read(Utterance(id=path, source="", speaker="", audio=path), sample_rate)
        try:
            import soundfile
        except ImportError:
            raise UserError("reading audio needs soundfile; pip install 'tolktrain[audio]'") from None
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                block = file.read(_MOST_SAMPLES // file.channels, dtype="float32", always_2d=True)
                rate = int(file.samplerate)
        except (RuntimeError, ValueError, TypeError) as error:
            raise OSError(f"its audio cannot be read ({error})") from None
        if not np.isfinite(block).all():
            raise OSError("its audio holds values that are not finite")
        return resampled(block.mean(axis=1, dtype=np.float32), rate, sample_rate)
