"""The interface of the kinds of preparation (recordings, text, published sets, dialogues)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Record, SpeechInfo, TextInfo
from tolktrain.prepare.job.shards import Packing
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import Failure


@dataclass(frozen=True)
class Part:
    """A piece of the work: what one process does at a time, and a restart does again."""

    inputs: tuple[Any, ...]  # in the kind's own types; can be pickled
    num_entries: int  # utterances or documents, as far as known beforehand


class Kind(Protocol):
    """A kind of preparation. Made from the configuration in every process; it must not hold open files."""

    text: TextInfo | None
    speech: SpeechInfo | None
    aligned: bool  # records have word alignment; of conversations: some may
    packing: Packing | None  # of conversations; None for passages
    unused: Unused  # what `parts` and `records` have read over since it was last taken

    def parts(self) -> tuple[list[Part], list[Failure]]:
        """All parts in order, and the unusable entries of the manifest.

        The same input gives the same parts on every machine. Raises `UserError` when the input as a whole is unusable.
        """
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Everything else that the records depend on, such as digests of tokenizers; plain JSON."""
        ...

    def records(self, part: Part) -> "Iterator[tuple[str, Record] | Failure | int]":
        """The split and record of each passage of a part, failures, and the number of entries done since the last int.

        The same part gives the same records in the same order.
        """
        ...


class Preparation:
    """What is known about a kind of preparation before it is made.

    `tolktrain/prepare/NAME/kind.py` defines it as `PREPARATION`, for each NAME of `tolktrain.config.prepare.KINDS`.
    """

    def make(self, config: PrepareConfig) -> Kind:
        """The kind itself. Raises `UserError` if something that it reads is unusable."""
        raise NotImplementedError

    def fit(self, config: PrepareConfig, report: Callable[[str], None]) -> None:
        """Make what is configured to be made first, such as a tokenizer; `report` gets a line about it."""

    def source(self, config: PrepareConfig) -> str:
        """What is read, for messages."""
        raise NotImplementedError

    def speech_tokenizer(self, config: PrepareConfig) -> str | None:
        """Folder of the speech tokenizer, if units are made."""
        return None

    def uses_gpu(self, config: PrepareConfig) -> bool:
        """Whether the processes that do parts may compute on GPUs."""
        return False

    def without_gpu(self, config: PrepareConfig) -> PrepareConfig:
        """The same for the process that does no parts itself."""
        return config
