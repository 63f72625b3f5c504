"""One part of a preparation: its records as shards in the output, and a file that describes them."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.index import INDEX_FILE
from tolktrain.data.records import Record, columns_of
from tolktrain.prepare.job.shards import Counts, ShardWriter, check_record
from tolktrain.prepare.job.workers import Report
from tolktrain.prepare.kind import Kind, Part
from tolktrain.prepare.unused import UnusedItem
from tolktrain.prepare.utterances import Failure
from tolktrain.storage.base import Storage

PARTS_FOLDER = "parts"


class FailureEntry(BaseModel):
    """A line of failures.jsonl."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Utterance or document, or its place in the manifest.")
    reason: str = Field(description="Group that the summary counts.")
    detail: str = Field(description="What was wrong.")
    place: str | None = Field(default=None, description="File and line of the manifest, or the audio of a folder.")

    @classmethod
    def of(cls, failure: Failure) -> "FailureEntry":
        """The line of a failure. Invalid text is escaped."""
        texts = (failure.id, failure.reason.value, failure.detail, failure.place)
        identity, reason, detail, place = (text.encode("utf-8", "backslashreplace").decode() for text in texts)
        return cls(id=identity, reason=reason, detail=" ".join(detail.split()), place=place or None)


class PartResult(BaseModel):
    """What a finished part wrote to the output; parts/<number>.json."""

    model_config = ConfigDict(extra="forbid")

    preparation: str = Field(description="Digest of the preparation that it belongs to.")
    num_items: int = Field(ge=0, description="Utterances or documents of the part.")
    counts: dict[str, Counts] = Field(description="Of each split.")
    shards: dict[str, list[dict[str, Any]]] = Field(description="Entries of each split's index.json.")
    failures: list[FailureEntry] = Field(description="Entries that were not used, in order.")
    unused: list[UnusedItem] = Field(default=[], description="Fields that were not used, of files of word times.")


def part_name(number: int) -> str:
    """Name of a part's result in the output."""
    return f"{PARTS_FOLDER}/{number:06d}.json"


@dataclass(frozen=True)
class Workplace:
    """Where the results of parts are written."""

    storage: Storage
    preparation: str  # digest of preparation.json
    folder: str | None = None  # for shards until they are uploaded; the system's own if None


def do_part(config: PrepareConfig, kind: Kind, place: Workplace, number: int, part: Part, report: Report) -> PartResult:
    """Prepare one part. Its result is written last: a part without one is done again, with the same bytes.

    Raises `UserError` if a record does not fit the vocabularies, or the output cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=place.folder) as temporary:
        records = _Records(kind, part, report)
        stored = "passage" if kind.packing is None else kind.packing.kind
        columns = columns_of(kind.text is not None, kind.speech is not None, kind.aligned, stored)
        writers: dict[str, ShardWriter] = {}
        for split, record in records:
            if split not in writers:
                folder, shards = Path(temporary) / split, config.shards
                writers[split] = ShardWriter(folder, columns, shards.megabytes << 20, shards.compression)
            writers[split].add(record)
        splits = sorted(writers)
        result = PartResult(
            preparation=place.preparation,
            num_items=records.num_entries,
            counts={split: writers[split].finish() for split in splits},
            shards={split: _upload(writers[split].folder, place.storage, split, number) for split in splits},
            failures=records.failures,
            unused=kind.unused.take(),
        )
    exclude = {"counts": {"__all__": {"num_conversations", "roles"}}} if kind.packing is None else None
    place.storage.write(part_name(number), result.model_dump_json(exclude=exclude).encode())
    return result


class _Records:
    """The records of a part, with its failures and its number of entries."""

    def __init__(self, kind: Kind, part: Part, report: Report) -> None:
        self.failures: list[FailureEntry] = []
        self.num_entries = 0
        self._kind = kind
        self._part = part
        self._report = report

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        for item in self._kind.records(self._part):
            if isinstance(item, int):
                self.num_entries += item
                self._report(item)
            elif isinstance(item, Failure):
                self.failures.append(FailureEntry.of(item))
            else:
                # Of pieces that were checked one by one: a wrong record cannot be left out as the failure of one entry.
                check_record(item[1], self._kind.text, self._kind.speech)
                yield item


def _upload(folder: Path, storage: Storage, split: str, number: int) -> list[dict[str, Any]]:
    """Bring the shards of a part into the folder of their split, under names that no other part uses."""
    entries: list[dict[str, Any]] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["shards"]
    for place, entry in enumerate(entries):
        name = f"shard.{number:06d}-{place:03d}.mds"
        kept = entry["zip_data"] or entry["raw_data"]
        source = folder / kept["basename"]
        suffix = kept["basename"].removeprefix(entry["raw_data"]["basename"])
        entry["raw_data"]["basename"] = name
        kept["basename"] = name + suffix
        storage.upload(source, f"{split}/{name}{suffix}")
    return entries
