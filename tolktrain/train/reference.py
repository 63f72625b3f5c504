"""The frozen reference of a stage of preferences: its log-probabilities, computed once before the first step."""

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tolktrain.checkpoint.manifest import digest_of, read_manifest
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.parallel.collectives import all_gather_objects, on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.paths import RunPaths
from tolktrain.runs.preference_reference import Entries, KnownReference, append_reference, read_reference
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resume import Position
from tolktrain.train.stages import StagePlan

STATE_KEY = "preference_reference"  # of the digest in state.json

_SEQUENCES_OF_A_LINE = 512  # after which the file is extended, so that an interruption loses little
_SECONDS_BETWEEN_REPORTS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredReference:
    """Log-probabilities of a frozen reference, the same on all ranks."""

    digest: str  # of its weights
    entries: Mapping[str, tuple[float, ...]]  # by the digest of a sequence, of its documents in nats

    def __call__(self, batch: Batch) -> Tensor:
        """Float64 [2P], of the documents of a micro batch."""
        values = [value for key in batch.pair_keys for value in self.entries[key]]
        return torch.tensor(values, dtype=torch.float64)


def digest_of_initial(config: Config, position: Position, initial_digest: str | None, layout: Layout) -> str:
    """A digest of the weights with which a stage begins; collective.

    Args:
        config: of the run.
        position: at the begin of the stage.
        initial_digest: of the weights that the run begins from (`checkpoint.init_from`); None for random ones.
        layout: of this rank.
    """
    if position.folder is not None:
        folder = position.folder
        return on_rank_zero(layout.rank, lambda: digest_of(read_manifest(folder)))
    backbone = config.model_dump(mode="json")["model"]["backbone"]
    content = json.dumps([initial_digest, config.run.seed, backbone], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass
class ReferencePass:
    """Computes what is missing of the reference of a stage. Collective over all ranks."""

    run_dir: Path
    plan: StagePlan
    engine: Engine  # whose model is that of the begin of the stage, unless `is_inside`
    layout: Layout
    digest: str
    is_inside: bool  # steps of the stage are done, so that the model is not the reference any more
    progress: Progress
    must_stop: Callable[[], bool]
    num_sequences: int  # of a step, over all ranks

    def run(
        self,
        num_steps: int,
        open_steps: Callable[[int], AbstractContextManager[Iterator[list[Batch]]]],
        validation: Sequence[Batch],
    ) -> StoredReference | None:
        """Know the reference of all sequences of the stage; None if a stop was requested.

        Args:
            num_steps: of the stage, with those that are skipped after rollbacks.
            open_steps: opens this rank's micro batches of each step, from a given step on, without skipping.
            validation: this rank's micro batches of preferences that are validated.

        Raises:
            UserError: the file is of another model, or sequences are missing and steps of the stage are done.
        """
        known = self._read()
        begun, reported = time.monotonic(), time.monotonic()
        chunk = max(1, _SEQUENCES_OF_A_LINE // self.num_sequences)
        self._add(known, validation, known.num_steps, "train.validation")
        # Before the first step, the data of the stage may have changed since an interrupted start.
        first = known.num_steps if self.is_inside else 0
        if first < num_steps:
            with open_steps(first) as steps:
                for begin in range(first, num_steps, chunk):
                    end = min(begin + chunk, num_steps)
                    self.progress.at(f"computing the reference of preferences, step {begin:,} of {num_steps:,}")
                    batches = [batch for _ in range(begin, end) for batch in next(steps)]
                    self._add(known, batches, end, f"train.stages.{self.plan.index}")
                    if self.must_stop():
                        return None
                    if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                        reported = time.monotonic()
                        self._say(f"  reference of preferences: {end:,} of {num_steps:,} steps")
        number, seconds = len(known.entries), time.monotonic() - begun
        self._say(f"  reference of preferences: {number:,} sequences, sha256 {self.digest[:12]}, {seconds:.0f} s")
        return StoredReference(self.digest, known.entries)

    def _read(self) -> KnownReference:
        found = on_rank_zero(self.layout.rank, lambda: read_reference(self.run_dir, self.plan.index))
        if self.digest not in found and self.is_inside:
            path = RunPaths(self.run_dir).preference_reference
            other = f"has that of another model (sha256 {next(iter(found))[:12]})" if found else "does not have it"
            raise UserError(
                f"the stage {self.plan.name!r} compares with the reference of sha256 {self.digest[:12]}, and {path}"
                f" {other}; restore the file as the run has written it, or start the run again with run.restart=true"
            )
        return found.get(self.digest, KnownReference())

    def _add(self, known: KnownReference, batches: Sequence[Batch], num_steps: int, key: str) -> None:
        """Compute what is missing of some batches. Each rank computes equally many, as ZeRO 3 and pipelines need it."""
        wanted = self._missing(known, batches)
        if wanted and self.is_inside:
            raise UserError(
                f"{key} has preferences that were not compared with the reference at the begin of the stage"
                f" {self.plan.name!r}, and its weights are not here any more: the stage was extended, a rollback has"
                " skipped data, or other sets are validated; restore the earlier settings, or begin a new run from the"
                " last checkpoint (checkpoint.init_from), which is its reference then"
            )
        own: Entries = {}
        if wanted:
            found = self.engine.log_probs(wanted)
            if found and self.layout.tensor_rank == 0:
                for batch, log_probs in zip(wanted, found, strict=True):
                    own |= _by_sequence(batch, log_probs.tolist())
        new: Entries = {}
        for entries in all_gather_objects(own):
            for name, values in entries.items():
                if name not in known.entries:
                    new.setdefault(name, values)
        if not all(map(math.isfinite, itertools.chain(*new.values()))):
            raise UserError(
                f"the reference of the stage {self.plan.name!r} has log-probabilities that are not finite: its weights"
                " are those of a run that has diverged; begin from an earlier checkpoint (checkpoint.init_from)"
            )
        known.entries |= new
        if new or num_steps > known.num_steps:
            known.num_steps = max(num_steps, known.num_steps)
            on_rank_zero(
                self.layout.rank,
                lambda: append_reference(self.run_dir, self.plan.index, self.digest, num_steps, new),
            )

    def _missing(self, known: KnownReference, batches: Sequence[Batch]) -> list[Batch]:
        """The batches with sequences that are not known, on this rank or another one in its place; each once."""
        wanted: list[Batch] = []
        seen: set[str] = set()
        keys_of_ranks = all_gather_objects([batch.pair_keys for batch in batches])
        for batch, *keys in zip(batches, *keys_of_ranks, strict=True):
            missing = {key for key in itertools.chain(*keys) if key not in known.entries and key not in seen}
            if missing:
                wanted.append(batch)
            seen |= missing
        return wanted

    def _say(self, line: str) -> None:
        logger.info("%s", line.strip())
        if self.layout.rank == 0:
            Console(highlight=False, soft_wrap=True).print(line)


def _by_sequence(batch: Batch, values: list[float]) -> Entries:
    entries: Entries = {}
    for key, count in zip(batch.pair_keys, batch.pair_counts, strict=True):
        entries[key], values = tuple(values[:count]), values[count:]
    assert not values
    return entries
