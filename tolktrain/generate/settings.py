"""Settings of drawing and hearing that the command line may give in place of the run's configuration."""

from dataclasses import dataclass
from pathlib import Path

from tolktrain.config import Config
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.speaker import Speaker
from tolktrain.units.vocoders.kind import Voice

_ALL_IDS = 1 << 30


@dataclass(frozen=True)
class Drawing:
    """How ids are drawn; None for what the run's configuration says."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def sampling(self, config: Config) -> Sampling:
        """With what the configuration of a run says."""
        return Sampling(
            config.evaluation.temperature if self.temperature is None else self.temperature,
            config.evaluation.top_k if self.top_k is None else self.top_k or _ALL_IDS,
            config.run.seed if self.seed is None else self.seed,
            self.top_p,
            self.repetition_penalty,
        )


@dataclass(frozen=True)
class Hearing:
    """What speech is heard with; None for what the run's configuration says."""

    vocoder: Path | None = None  # folder with vocoder.json
    speaker: str | None = None
    style: str | None = None

    def of(self, continuer: Continuer) -> Speaker:
        """Raises UserError as `Speaker`."""
        return Speaker(continuer, self.vocoder, Voice(self.speaker, self.style))
