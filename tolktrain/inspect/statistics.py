"""Statistics of records: rates, lengths, spans and the use of units."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from tolktrain.data.records import Array, DatasetInfo, Record
from tolktrain.data.sequences import IntArray
from tolktrain.inspect.spans import TakenApart, parts_of

QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "run_length": "run length, frames",
        "units_per_second": "units per second, by record",
        "words_per_second": "words per second, by record",
        "units_per_word": "units per word",
        "text_ids_per_word": "text ids per word",
        "text_span_words": "words per span of text",
        "speech_span_words": "words per span of speech",
        "utterance_text": "utterance, text ids with EOS",
        "utterance_units": "utterance, units with EOS",
        "record_text": "record, text ids with EOS",
        "record_units": "record, units with EOS",
    }
)
"""Every distribution that is measured, and what its values are."""

MOST_FREQUENT = 5


@dataclass(frozen=True)
class Distribution:
    """A few numbers that summarize many values."""

    count: int
    mean: float
    median: float
    percentile_99: float  # interpolated between neighbouring values
    largest: float

    @classmethod
    def of(cls, values: Array) -> "Distribution":
        """Of at least one value."""
        median, percentile = np.percentile(values, (50, 99))
        return cls(len(values), float(values.mean()), float(median), float(percentile), float(values.max()))


@dataclass(frozen=True)
class UnitUse:
    """How the units of one codebook are used."""

    num_units: int
    used: int  # units that occur
    entropy_bits: float  # of the frequencies, repeats collapsed
    most_frequent: tuple[tuple[int, float], ...]  # units and their shares, most frequent first

    @property
    def perplexity(self) -> float:
        """Number of equally frequent units with the same entropy."""
        return float(2**self.entropy_bits)

    @classmethod
    def of(cls, counts: IntArray) -> "UnitUse":
        """Of the number of times each unit occurs [num_units], which are not all zero."""
        shares = counts / counts.sum()
        seen = shares[shares > 0]
        order = np.argsort(-counts, kind="stable")[: min(MOST_FREQUENT, len(seen))]
        return cls(
            num_units=len(counts),
            used=len(seen),
            entropy_bits=float(-(seen * np.log2(seen)).sum()),
            most_frequent=tuple((int(unit), float(shares[unit])) for unit in order),
        )


@dataclass(eq=False)
class Statistics:
    """Measurements of records and of the sequences made of them, added up one record at a time."""

    info: DatasetInfo
    num_records: int = 0
    num_words: int = 0
    num_units: int = 0
    seconds: float = 0.0
    num_targets: int = 0  # positions of the sequences
    scored: dict[str, int] = field(default_factory=lambda: {"text": 0, "speech": 0})
    unit_counts: IntArray = field(init=False)  # [K, num_units]
    _values: dict[str, list[Array]] = field(default_factory=lambda: {name: [] for name in QUANTITIES})

    def __post_init__(self) -> None:
        speech = self.info.speech
        self.unit_counts = np.zeros((speech.num_codebooks, speech.num_units) if speech else (0, 0), np.int64)

    @classmethod
    def of(cls, info: DatasetInfo, apart: Iterable[TakenApart]) -> "Statistics":
        """Of records and their sequences."""
        statistics = cls(info)
        for one in apart:
            statistics.add(one)
        return statistics

    def add(self, apart: TakenApart) -> None:
        """Count one more record and its sequence."""
        record = apart.record
        self.num_records += 1
        self.num_words += len(record.word_text_ends)
        if record.has_text:
            self._add_lengths("text", record.utterance_text_ends)
        if record.has_speech:
            self._add_speech(record)
        if record.is_aligned and record.kind == "passage":
            self._keep("units_per_word", np.diff(record.word_unit_ends.astype(np.int64), prepend=0))
            self._keep("text_ids_per_word", np.diff(record.word_text_ends.astype(np.int64), prepend=0))
        self._add_sequence(apart)

    def values(self, quantity: str) -> Array:
        """All values of one of `QUANTITIES`."""
        parts = self._values[quantity]
        return np.concatenate(parts) if parts else np.zeros(0)

    def distributions(self) -> dict[str, Distribution]:
        """By quantity, those that the data has."""
        present = {name: self.values(name) for name in QUANTITIES}
        return {name: Distribution.of(values) for name, values in present.items() if len(values)}

    def unit_use(self) -> list[UnitUse]:
        """For each codebook; empty without speech."""
        return [UnitUse.of(counts) for counts in self.unit_counts]

    def rates(self) -> dict[str, float]:
        """Numbers of all records together, those that the data has."""
        rates: dict[str, float] = {}
        if self.seconds:
            rates["hours"] = self.seconds / 3600
            rates["units_per_second"] = self.num_units / self.seconds
            if self.num_words:
                rates["words_per_second"] = self.num_words / self.seconds
                rates["units_per_word"] = self.num_units / self.num_words
        rates["scored_share"] = sum(self.scored.values()) / self.num_targets
        for modality, scored in self.scored.items():
            rates[f"scored_{modality}_share"] = scored / self.num_targets
        return rates

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "records": self.num_records,
            "words": self.num_words,
            "units": self.num_units,
            **self.rates(),
            "distributions": {name: vars(values) for name, values in self.distributions().items()},
            "codebooks": [vars(use) | {"perplexity": use.perplexity} for use in self.unit_use()],
        }

    def _add_lengths(self, modality: str, utterance_ends: Array) -> None:
        lengths = np.diff(utterance_ends.astype(np.int64), prepend=0)
        lengths = lengths[lengths > 0] + 1  # turns need not have both modalities
        self._keep(f"utterance_{modality}", lengths)
        self._keep(f"record_{modality}", lengths.sum(keepdims=True))

    def _add_speech(self, record: Record) -> None:
        assert self.info.speech is not None
        run_lengths = record.run_lengths.astype(np.int64)
        seconds = float(run_lengths.sum()) / self.info.speech.frames_per_second
        self.num_units += len(record.units)
        self.seconds += seconds
        self._keep("run_length", run_lengths)
        self._keep("units_per_second", np.array([len(record.units) / seconds]))
        if record.is_aligned and record.kind == "passage":
            self._keep("words_per_second", np.array([len(record.word_unit_ends) / seconds]))
        self._add_lengths("units", record.utterance_unit_ends)
        for counts, units in zip(self.unit_counts, record.units.T, strict=True):
            counts += np.bincount(units, minlength=len(counts))

    def _add_sequence(self, apart: TakenApart) -> None:
        record, sequence = apart.record, apart.sequence
        self.num_targets += len(sequence.scored) - 1
        content = [span for span in apart.spans if span.kind in self.scored]
        for span in content:
            self.scored[span.kind] += span.num_scored
        if sequence.strategy == "interleaved":
            # The sequence or the record may end before its last span does.
            for span in content[:-1]:
                ends = record.word_unit_ends if span.kind == "speech" else record.word_text_ends
                words = sum(part.number >= 0 for part in parts_of(span, ends))
                self._keep(f"{span.kind}_span_words", np.array([words]))

    def _keep(self, quantity: str, values: Array) -> None:
        self._values[quantity].append(values)
