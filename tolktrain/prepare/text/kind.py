"""Documents of text to records: short ones joined to passages, long ones cut."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Array, Record, SpeechInfo, TextInfo
from tolktrain.data.text_tokenizer import SegmentedEncoder, load_text_tokenizer
from tolktrain.prepare.job.passages import PassageBuilder, Piece
from tolktrain.prepare.job.shards import Packing
from tolktrain.prepare.job.splits import split_of
from tolktrain.prepare.kind import Kind, Part, Preparation
from tolktrain.prepare.text.documents import Document, FileRange, find_files, ranges_of, read_documents
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import Failure, Reason

_BATCH_CHARACTERS = 1 << 20
_LONGEST_PIECE = 4  # in lengths of a passage


class TextKind:
    """Documents to records with text only.

    Each document is an utterance of its record, so that EOS follows it. A document longer than four passages is cut
    into pieces of about equal length, at ends of lines where it has some. A cut piece is an utterance too: records hold
    no mark for text that continues elsewhere, so EOS follows it as well, once in at least one and a half passages.
    """

    def __init__(self, config: PrepareConfig) -> None:
        """Load the tokenizer. Raises `UserError` if that is not possible."""
        assert config.text is not None and config.text_tokenizer is not None
        self._config = config
        self._documents = config.text
        tokenizer = load_text_tokenizer(config.text_tokenizer)
        self._encoder = SegmentedEncoder(tokenizer.tokenizer)
        passage = max(config.passages.tokens, config.passages.shortest_tokens)
        self._cutter = Cutter(_LONGEST_PIECE * passage, self._encoder)
        self.text: TextInfo | None = tokenizer.info
        self.speech: SpeechInfo | None = None
        self.aligned = False
        self.packing: Packing | None = None
        self.unused = Unused()

    def fingerprint(self) -> Mapping[str, Any]:
        """Digest of the tokenizer."""
        return {"text_tokenizer": self.text.sha256 if self.text is not None else None}

    def parts(self) -> tuple[list[Part], list[Failure]]:
        """Ranges of files; small files share a part."""
        size = self._config.parts.megabytes << 20
        parts: list[Part] = []
        ranges: list[FileRange] = []
        num_entries = content = 0
        for path, name, kind in find_files(self._documents.files):
            for part, number in ranges_of(path, name, kind, size, self._documents):
                # Row groups have a known number of rows, not of bytes: each is a part of its own.
                length = size if kind == "parquet" else part.end - part.begin
                if ranges and content + length > size:
                    parts.append(Part(tuple(ranges), num_entries))
                    ranges, num_entries, content = [], 0, 0
                ranges.append(part)
                num_entries += number
                content += length
        if ranges:
            parts.append(Part(tuple(ranges), num_entries))
        return parts, []

    def records(self, part: Part) -> Iterator[tuple[str, Record] | Failure | int]:
        """See `Kind`. Passages do not reach beyond the ranges of a part."""
        self._encoder.restart()
        for item in part.inputs:
            yield from self._records(item)

    def _records(self, item: FileRange) -> Iterator[tuple[str, Record] | Failure | int]:
        builders: dict[str, PassageBuilder] = {}
        for batch in _batches(read_documents(item, self._documents)):
            documents = [entry for entry in batch if isinstance(entry, Document)]
            encoded = iter(self._encoder.encode([document.text for document in documents]))
            for entry in batch:
                if isinstance(entry, Failure):
                    yield entry
                    continue
                ids = next(encoded)
                if not len(ids):
                    yield Failure(entry.place, Reason.TEXT, "the tokenizer gives no ids for its text")
                    continue
                split = split_of(self._config.heldout, entry.id)
                builder = builders.setdefault(split, PassageBuilder(self._config.passages, item.name))
                for number, piece in enumerate(self._cutter.cut(ids)):
                    place = f"{entry.place}+{number}" if number else entry.place
                    if (record := builder.add(Piece(place, piece))) is not None:
                        yield split, record
            yield len(batch)
        for split, builder in builders.items():
            for record in builder.rest():
                yield split, record
            for place in builder.dropped:
                yield Failure(place, Reason.SHORT, "what remains of its part makes no passage of its own")


class Cutter:
    """Cuts the ids of a long document."""

    def __init__(self, longest: int, encoder: SegmentedEncoder) -> None:
        self._longest = longest
        self._encoder = encoder
        self._ends_line: npt.NDArray[np.bool_] | None = None

    def cut(self, ids: Array) -> Iterator[Array]:
        """Pieces of at most `longest` ids, together the whole; none is shorter than three eighths of that."""
        while len(ids) > self._longest:
            if self._ends_line is None:
                self._ends_line = self._encoder.ends_line()
            target = -(-len(ids) // -(-len(ids) // self._longest))
            earliest = target - target // 4
            ends = np.flatnonzero(self._ends_line[ids[earliest - 1 : target]])
            end = earliest + int(ends[-1]) if len(ends) else target
            yield ids[:end]
            ids = ids[end:]
        yield ids


def _batches(entries: Iterator[Document | Failure]) -> Iterator[Sequence[Document | Failure]]:
    """Entries by the batch, of about so many characters."""
    batch: list[Document | Failure] = []
    characters = 0
    for entry in entries:
        batch.append(entry)
        characters += len(entry.text) if isinstance(entry, Document) else 1
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _TextKind(Preparation):
    def make(self, config: PrepareConfig) -> Kind:
        return TextKind(config)

    def source(self, config: PrepareConfig) -> str:
        assert config.text is not None
        return ", ".join(config.text.files)


PREPARATION = _TextKind()
