"""The base class of strategies: ways to make a training sequence from a record."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.records import DatasetInfo, Record, RecordKind
from tolktrain.data.sequences import SequenceWriter

Modality = Literal["text", "speech"]


class SequenceStrategy(ABC):
    """A strategy. Each file of this package defines one as `STRATEGY`."""

    reads: ClassVar[RecordKind] = "passage"
    needs_text: ClassVar[bool] = True
    needs_speech: ClassVar[bool] = True
    needs_alignment: ClassVar[bool] = False  # of words with text and speech
    scores: ClassVar[tuple[Modality, ...]]  # what is predicted
    # Whether `tolktrain evaluate` measures it in every run; else where a stage trains it.
    always_evaluated: ClassVar[bool] = True
    # Whether the sequence of a record is the same in every epoch, so that it is compared with a reference only once.
    is_constant: ClassVar[bool] = False

    @abstractmethod
    def write(
        self, writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
    ) -> None:
        """Fill the writer with tokens of a record, which has the modalities that the strategy needs.

        Starts at a random position that is early enough for the rest of the record to fill the sequence, if the record
        is long enough. Raises `UserError` if the record's ids are outside the vocabulary.
        """

    @abstractmethod
    def longest(self, info: DatasetInfo) -> int:
        """Tokens of the longest sequence that can be made from a record of the set."""
