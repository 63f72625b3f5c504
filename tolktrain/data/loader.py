"""Loads the batches of a stage's training steps, and of validation."""

import contextlib
import math
import sys
import threading
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from types import TracebackType

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tolktrain.cluster.signals import ignore_signals_in_worker, signals_held
from tolktrain.cluster.threads import guarded
from tolktrain.config import Config
from tolktrain.config.data import DatasetConfig, InterleavingConfig, Mixture, Strategy
from tolktrain.data.batch import Batch, collate
from tolktrain.data.delivery import awaited_process, ended_process, share_batch
from tolktrain.data.folder import RecordFolder, fetch_descriptions
from tolktrain.data.mixture import MixturePlan, RecordMixture, Sample, Segment
from tolktrain.data.sequences import Sequence, sequence_rng
from tolktrain.data.sharing import read_indexes
from tolktrain.data.skipping import SkippedSteps
from tolktrain.data.strategies import STRATEGIES, build_sequence
from tolktrain.errors import UserError
from tolktrain.libraries.torch_compat import end_loader_processes, loader_processes
from tolktrain.vocabulary import Vocabulary

PREFETCHED_BATCHES = 4
"""Micro batches that a loader process prepares ahead."""

_CLOSING_SECONDS = 3.0  # for loader processes to exit by themselves; normally they need some milliseconds


class StageLoader:
    """Yields, for each optimizer step, the list of accumulation micro batches of this data rank, endlessly.

    The global batch of step k is the same for any number of data ranks, loader processes and micro batches. Iteration
    can start at any step. Data steps in `skipped` are omitted; the following ones take their place. Close the loader,
    or use it as a context manager, before the next stage opens its own.
    """

    def __init__(
        self,
        config: Config,
        mixture: Mixture,
        vocabulary: Vocabulary,
        *,
        seed: int,
        data_rank: int = 0,
        data_size: int = 1,
        step: int = 0,
        skipped: SkippedSteps | None = None,
        pin_memory: bool = False,
    ) -> None:
        train = config.train
        self._records = RecordMixture(
            config.data,
            MixturePlan.from_config(mixture),
            seed=seed,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )
        self.steps_per_epoch = self._records.steps_per_epoch
        self.accumulation_steps = train.global_batch_size // (train.micro_batch_size * data_size)
        segments = list((skipped or SkippedSteps()).segments(step))
        length, interleaving = train.sequence_length, config.data.interleaving
        batches = _MicroBatches(self._records, vocabulary, length, interleaving, seed, segments)
        workers = config.data.num_workers
        self._loader: DataLoader[Batch] | None = DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            pin_memory=pin_memory,
            # A separate generator, so that starting a loader does not change the random state in checkpoints.
            generator=torch.Generator(),
            worker_init_fn=_start_worker if workers else None,
        )
        self._batches: Iterator[Batch | UserError | None] | None = None
        self._taken = 0  # items that the loader processes have delivered, each in turn
        self._is_waiting = False

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def start(self) -> None:
        """Start the loader processes, where nothing may raise in between: they would be left behind. Otherwise, the
        first batch starts them."""
        assert self._loader is not None, "the loader is closed"
        if self._batches is None:
            with signals_held():
                self._batches = iter(self._loader)

    def __next__(self) -> list[Batch]:
        self.start()
        assert self._batches is not None
        result: list[Batch] = []
        while len(result) < self.accumulation_steps:
            self._is_waiting = True
            item = next(self._batches)
            self._is_waiting = False
            self._taken += 1
            if isinstance(item, UserError):
                raise item
            if item is not None:
                result.append(item)
        return result

    @contextlib.contextmanager
    def naming_ended_processes(self) -> Iterator[None]:
        """In this context, torch's error about a loader process that has ended names the process and the cause.

        torch raises it anywhere in the main thread, because a signal says that a child process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            workers = loader_processes(self._batches) or []
            ended = [number for number, worker in enumerate(workers) if not worker.is_alive()]
            if not ended:
                raise
            raise UserError(ended_process(ended[0], workers), by_machine=True) from error

    def describe_wait(self) -> str:
        """The loader process that the main thread waits for; empty if it waits for none. For any thread."""
        workers = loader_processes(self._batches)
        if not self._is_waiting or not workers:
            return ""
        return awaited_process(self._taken % len(workers), workers)

    def close(self) -> None:
        """End the loader processes and threads, and free the shared memory. Further calls have no effect."""
        if self._loader is None:
            return
        workers = loader_processes(self._batches)
        if workers is not None:
            _shut_down(self._batches, workers)
        self._batches = self._loader = None
        self._records.close()

    def __enter__(self) -> "StageLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_worker(number: int) -> None:
    ignore_signals_in_worker()
    # The thread that passes shared memory to the rank loses its connection if a signal interrupts the rank there.
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, EOFError | ConnectionError):
            before(kind, error, trace)

    sys.excepthook = show


def _shut_down(batches: object, workers: list[BaseProcess]) -> None:
    """End torch's loader processes; kill those that are stuck in a read that does not return."""
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        for worker in workers:
            if worker.is_alive():
                worker.kill()

    # They ignore TERM, which torch and Python's exit send before they wait for them.
    done = threading.Event()

    def kill_in_time() -> None:
        if not done.wait(_CLOSING_SECONDS):
            kill()

    watcher = guarded("loader-end", kill_in_time)
    watcher.start()
    try:
        end_loader_processes(batches)
    except RuntimeError:
        if not killed.is_set():  # else it says that loader processes were killed
            raise
    finally:
        done.set()
        watcher.join()
        kill()


class _MicroBatches(IterableDataset[Batch]):
    """The data set that a loader process iterates over: makes micro batches from records."""

    def __init__(
        self,
        records: RecordMixture,
        vocabulary: Vocabulary,
        sequence_length: int,
        interleaving: InterleavingConfig,
        seed: int,
        segments: AbstractSequence[Segment],
    ) -> None:
        self._records = records
        self._vocabulary = vocabulary
        self._sequence_length = sequence_length
        self._interleaving = interleaving
        self._seed = seed
        self._segments = segments

    def __iter__(self) -> Iterator[Batch | UserError | None]:  # type: ignore[override]
        # An error is passed on as a value: torch would add the loader process's traceback to the message.
        in_own_process = get_worker_info() is not None
        try:
            for samples in self._records.micro_batches(self._segments):
                batch = None if samples is None else collate([self._sequence(sample) for sample in samples])
                if in_own_process and batch is not None:
                    share_batch(batch)
                yield batch
        except UserError as error:
            yield error

    def _sequence(self, sample: Sample) -> Sequence:
        record, epoch = sample.record, sample.epoch
        strategy = self._records.plan.strategy(sample.dataset, record.id, epoch, self._seed)
        epoch = 0 if STRATEGIES[strategy].is_constant else epoch
        rng = sequence_rng(self._seed, record.id, epoch, "sequence")
        return build_sequence(record, strategy, self._vocabulary, self._sequence_length, self._interleaving, rng)


def validation_batches(
    dataset: DatasetConfig,
    strategy: Strategy,
    count: int,
    *,
    vocabulary: Vocabulary,
    sequence_length: int,
    interleaving: InterleavingConfig,
    micro_batch_size: int,
    seed: int = 0,
    data_rank: int = 0,
    data_size: int = 1,
) -> Iterator[Batch]:
    """One sequence of each of the first `count` records (all if there are fewer), always the same ones.

    Every data rank yields equally many batches of equal size; in rows without a record, nothing is scored. The first
    batch is made collectively by all ranks.
    """
    fetch_descriptions(dataset)
    (index_of_set,) = read_indexes([dataset.path])
    records = RecordFolder(dataset, index=index_of_set)
    count = min(count, len(records))
    rows_per_rank = math.ceil(count / (data_size * micro_batch_size)) * micro_batch_size

    def sequence(row: int) -> Sequence:
        index = row * data_size + data_rank
        record = records[min(index, count - 1)]
        rng = sequence_rng(seed, record.id, 0, f"validation-{strategy}")
        result = build_sequence(record, strategy, vocabulary, sequence_length, interleaving, rng)
        return result if index < count else replace(result, scored=np.zeros_like(result.scored))

    for begin in range(0, rows_per_rank, micro_batch_size):
        yield collate([sequence(row) for row in range(begin, begin + micro_batch_size)])
