"""The micro batches that a rank trains on while it is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from tolktrain.benchmark.synthetic import RandomSequences, Speech, units_per_word
from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.parallel.layout import Layout


@dataclass(frozen=True)
class StepShape:
    """Sequences of a step. Every layout trains on the same ones."""

    global_batch_size: int
    micro_batch_size: int
    layout: Layout

    @property
    def accumulation(self) -> int:
        """Micro batches of a step on each data rank."""
        return self.global_batch_size // (self.layout.data_size * self.micro_batch_size)

    def numbers(self, step: int) -> list[range]:
        """Numbers of this rank's sequences in a step, for each of its micro batches."""
        share = self.global_batch_size // self.layout.data_size
        first = step * self.global_batch_size + self.layout.data_rank * share
        size = self.micro_batch_size
        return [range(first + size * micro, first + size * (micro + 1)) for micro in range(self.accumulation)]


def with_global_batch(config: Config, size: int) -> Config:
    """The configuration with steps of `size` sequences.

    Raises:
        UserError: its micro batches do not divide them.
    """
    if size < 1 or size % config.train.micro_batch_size:
        raise UserError(
            f"--global-batch {size} is no multiple of train.micro_batch_size {config.train.micro_batch_size}"
        )
    return config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})


def sequences_of(config: Config, architecture: Architecture, speech_share: float) -> RandomSequences:
    """Random sequences in the form of the configuration's data.

    Raises:
        UserError: the share of speech cannot be made with its spans.
    """
    units = units_per_word(speech_share, config.data.interleaving, architecture.num_codebooks)
    return RandomSequences(
        config.train.sequence_length,
        architecture.text_vocab_size,
        Speech(architecture.num_units, architecture.num_codebooks, units),
        config.data.interleaving,
        config.run.seed,
    )


def timed_steps(sequences: RandomSequences, shape: StepShape, count: int) -> list[list[Batch]]:
    """This rank's micro batches of steps."""
    return [[sequences.batch(numbers) for numbers in shape.numbers(step)] for step in range(count)]


def largest_steps(sequences: RandomSequences, shape: StepShape, stage: StageConfig) -> list[list[Batch]]:
    """Steps whose micro batches need most memory: all speech for the input adapter, all text for the text head.

    Each is left out where the stage never trains on it.
    """
    kinds: list[Strategy] = [] if set(stage.mixture) == {"text"} else ["speech"]
    kinds += ["text"] if "text" in stage.mixture else []
    numbers = shape.numbers(0)
    if len(numbers) >= len(kinds):
        return [[sequences.batch(own, kinds[place % len(kinds)]) for place, own in enumerate(numbers)]]
    return [[sequences.batch(own, kind) for own in numbers] for kind in kinds]


def pinned(steps: Sequence[Sequence[Batch]]) -> list[list[Batch]]:
    """The steps in pinned memory, as the loader gives them to a GPU."""
    return [[batch.pin_memory() for batch in batches] for batches in steps]
