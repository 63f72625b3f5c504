"""Griffin-Lim: the centroids of log-mel units are spectra, to which it finds phases. It needs no files of its own.

The phases of all frames are found together, so memory grows with the length of the audio.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tolktrain.units.base import Samples, Vocoder, check_units
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.vocoders.kind import VocoderKind, VocoderSource
from tolktrain.units.vocoders.voices import require_one_voice

NAME: Final = "griffin-lim"


class GriffinLimVocoder:
    """Audio of log-mel units. Durations are not predicted."""

    name = NAME
    duration_predictor = None

    def __init__(self, tokenizer: LogMelTokenizer) -> None:
        """Vocoder of the units of a tokenizer."""
        self._tokenizer = tokenizer

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return self._tokenizer.sample_rate

    def stream(self, frames: npt.NDArray[Any]) -> Iterator[Samples]:
        """Audio of the units [frames, 1]: [frames * hop] samples, in one piece.

        Raises `UserError` for ids outside the vocabulary.
        """
        check_units(frames, self._tokenizer.num_units, 1)
        yield self._tokenizer.analysis.invert(self._tokenizer.centroids[frames[:, 0].astype(np.int64)])


def _open(source: VocoderSource) -> Callable[[], Vocoder]:
    require_one_voice(source.voice, "Griffin-Lim")

    def load() -> Vocoder:
        tokenizer = source.load_tokenizer()
        assert isinstance(tokenizer, LogMelTokenizer)
        return GriffinLimVocoder(tokenizer)

    return load


KIND = VocoderKind(NAME, _open)
