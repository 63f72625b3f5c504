"""What turns the units of a run into audio: its vocoder, and how long units last."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from tolktrain.data.sequences import IntArray
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.durations import Durations, choose_durations
from tolktrain.generate.run import training_records
from tolktrain.units.base import Frames, Vocoder, expand
from tolktrain.units.vocoders.kind import FIRST_VOICE, Voice
from tolktrain.units.vocoders.load import open_vocoder, require_vocoder

logger = logging.getLogger(__name__)


class Speaker:
    """The vocoder of a run and the durations of units, which are loaded when they are first needed."""

    def __init__(self, continuer: Continuer, folder: str | Path | None = None, voice: Voice = FIRST_VOICE) -> None:
        """Choose the vocoder: in `folder`, as data.vocoder of the configuration says, or that of the tokenizer.

        Raises UserError if one is named, and it does not fit the speech tokenizer or lacks the voice.
        """
        self._continuer = continuer
        chosen = continuer.config.data.vocoder
        if folder is None:  # otherwise, the voice of the configuration is one of another vocoder
            folder, voice = chosen.path, Voice(voice.speaker or chosen.speaker, voice.style or chosen.style)
        self._load: Callable[[], Vocoder] | None = None
        if folder is not None or voice != FIRST_VOICE:
            tokenizer = continuer.describe_speech()[1]
            self._load = require_vocoder(tokenizer, folder, voice, lambda: continuer.speech)

    @cached_property
    def vocoder(self) -> Vocoder | None:
        """None if the units cannot be turned into audio, or their durations are not known."""
        if self._load is None and self._continuer.config.data.speech_tokenizer is not None:
            tokenizer = self._continuer.describe_speech()[1]
            self._load = open_vocoder(tokenizer, load_tokenizer=lambda: self._continuer.speech)
        vocoder = None if self._load is None else self._load()
        config = self._continuer.config
        knows_durations = config.train.stages or config.evaluation.train_set is not None
        if vocoder is not None and vocoder.duration_predictor is None and not knows_durations:
            logger.warning(
                "there is no audio of units, because their durations are not known; for a folder of weights, name a"
                " data set with speech: evaluation.train_set=NAME data.sets.NAME.path=FOLDER"
            )
            return None
        return vocoder

    @property
    def frames_per_second(self) -> float:
        """Frames of the speech tokenizer."""
        return self._continuer.describe_speech()[0].frames_per_second

    @cached_property
    def durations(self) -> Durations:
        """As the vocoder predicts them, or else of the training records. Raises UserError if there are no records."""
        config, sizes = self._continuer.config, self._continuer.model.architecture
        return choose_durations(
            self.vocoder,
            lambda: training_records(config),
            config.evaluation.baseline_records,
            sizes.num_units,
            self.frames_per_second,
        )

    def frames(self, units: IntArray) -> tuple[Vocoder, Frames] | None:
        """The vocoder, and the frames of units [n, K]; None if there is no vocoder. Raises UserError like both."""
        if self.vocoder is None:
            return None
        return self.vocoder, expand(units, self.durations.run_lengths(units))
