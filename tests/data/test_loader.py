"""The global batch of a step depends on the seed alone."""

import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import random_records, write_dataset
from stages import NUM_CANONICAL_NODES, VOCABULARY, global_batches, rows, stage_loader

from tolktrain.config import Config
from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.skipping import SkippedSteps
from tolktrain.data.strategies import build_sequence
from tolktrain.errors import UserError

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def reference(stories: Path, make_config: MakeConfig) -> list[list[Any]]:
    """Twenty steps, more than two epochs, by one rank without loader processes."""
    config = make_config({"a": stories}, micro_batch_size=12, num_canonical_nodes=NUM_CANONICAL_NODES)
    return global_batches(config, 20)


@pytest.mark.parametrize(
    ("size", "workers", "micro"), [(1, 0, 1), (2, 0, 3), (3, 2, 2), (6, 0, 2), (12, 0, 1), (1, 3, 2), (2, 5, 1)]
)
def test_same_global_batches(
    stories: Path, make_config: MakeConfig, reference: list[Any], size: int, workers: int, micro: int
) -> None:
    config = make_config(
        {"a": stories}, micro_batch_size=micro, num_workers=workers, num_canonical_nodes=NUM_CANONICAL_NODES
    )
    steps = 20 if workers == 0 else 10
    assert global_batches(config, steps, size=size) == reference[:steps]


@pytest.mark.parametrize("start", [1, 7, 8, 9, 16, 19])
@pytest.mark.parametrize("workers", [0, 2])
def test_starts_at_any_step(
    stories: Path, make_config: MakeConfig, reference: list[Any], start: int, workers: int
) -> None:
    config = make_config({"a": stories}, num_workers=workers, num_canonical_nodes=NUM_CANONICAL_NODES)
    assert global_batches(config, 20 - start, start, size=1 if workers else 2) == reference[start:]


@pytest.mark.parametrize(
    ("ranges", "start", "size", "workers", "micro"),
    [
        ([range(3, 5)], 3, 1, 0, 12),
        ([range(6, 9), range(0, 1)], 0, 2, 0, 2),  # over the end of an epoch, and the very first
        ([range(6, 9), range(0, 1)], 0, 1, 2, 4),
        ([range(2, 8), range(9, 11), range(17, 19)], 1, 1, 4, 2),  # up to the end of an epoch; several
    ],
)
def test_skipped_steps_are_left_out(
    stories: Path,
    make_config: MakeConfig,
    reference: list[Any],
    ranges: list[range],
    start: int,
    size: int,
    workers: int,
    micro: int,
) -> None:
    config = make_config(
        {"a": stories}, micro_batch_size=micro, num_workers=workers, num_canonical_nodes=NUM_CANONICAL_NODES
    )
    left = [batch for step, batch in enumerate(reference) if not any(step in one for one in ranges)]
    found = global_batches(config, len(left) - start, start, size=size, skipped=SkippedSteps(ranges))
    assert found == left[start:]


def test_micro_batches_come_in_the_same_order_from_loader_processes(stories: Path, make_config: MakeConfig) -> None:
    made = []
    for workers in (0, 3):
        config = make_config({"a": stories}, micro_batch_size=4, num_workers=workers)
        with stage_loader(config) as loader:
            made.append([rows(next(loader)) for _ in range(18)])
    assert made[0] == made[1]


def test_an_epoch_has_no_record_twice_and_epochs_differ(reference: list[Any]) -> None:
    # 103 records make 8 steps of 12.
    epochs = [[row for batch in reference[begin : begin + 8] for row in batch] for begin in (0, 8)]
    for epoch in epochs:
        assert len({row[0] for row in epoch}) == 96
    assert [[row[0] for row in batch] for batch in reference[:8]] != [[row[0] for row in b] for b in reference[8:16]]
    first, second = ({row[0]: row[1:] for row in epoch} for epoch in epochs)
    shared = first.keys() & second.keys()
    assert len(shared) > 80 and np.mean([first[name] == second[name] for name in shared]) < 0.1


def test_sequences_are_those_of_record_epoch_and_seed(stories: Path, reference: list[Any]) -> None:
    records = {record.id: record for record in open_records(DatasetConfig(path=str(stories)))}
    for epoch, batches in enumerate((reference[:8], reference[8:16])):
        for name, strategy, tokens, *_ in (row for batch in batches for row in batch):
            rng = sequence_rng(5, name, epoch, "sequence")
            sequence = build_sequence(records[name], strategy, VOCABULARY, 32, InterleavingConfig(), rng)
            assert sequence.tokens[:, :-1].tobytes() == tokens


def test_another_seed_gives_another_order(stories: Path, make_config: MakeConfig, reference: list[Any]) -> None:
    config = make_config({"a": stories}, num_canonical_nodes=NUM_CANONICAL_NODES)
    other = global_batches(config, 2, seed=6)
    assert [row[0] for row in other[0]] != [row[0] for row in reference[0]]


def test_mixture_of_sets(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    write_dataset(tmp_path / "texts", [r for r in random_records(61, seed=9, speech=False, aligned=False)])
    config = make_config(
        {"a": stories, "t": tmp_path / "texts"},
        {"speech": {"a": 1.0}, "text": {"t": 1.0}, "interleaved": {"a": 1.0}},
        micro_batch_size=12,
    )
    with stage_loader(config) as loader:
        steps = loader.steps_per_epoch * 4
        strategies = Counter(name for _ in range(steps) for batch in next(loader) for name in batch.strategies)
    total = sum(strategies.values())
    assert total == steps * 12
    assert strategies["text"] == total // 3, "sets are taken in exact proportion"
    assert strategies["speech"] == pytest.approx(total / 3, rel=0.25)


def test_same_folder_again_and_beside_validation(stories: Path, make_config: MakeConfig) -> None:
    config = make_config({"a": stories}, num_workers=1)
    made = []
    for _ in range(3):
        with stage_loader(config) as loader:
            made.append(rows(next(loader)))
            batch = next(validate(stories, "interleaved", 4, 2))
            assert batch.record_ids == ["r0000", "r0001"]
            made[-1] += rows(next(loader))
    assert made[0] == made[1] == made[2]


def test_close_leaves_nothing_behind(stories: Path, make_config: MakeConfig) -> None:
    def blocks(prefix: int) -> set[int]:
        """Inodes, since another job may take a name as soon as it is free."""
        return {path.stat().st_ino for path in Path("/dev/shm").glob(f"{prefix:06}_*")}

    def mapped() -> int:
        """Blocks that this process sees, those that earlier tests have left included."""
        return Path("/proc/self/maps").read_text().count("_locals")

    threads, mapped_before = threading.active_count(), mapped()
    for workers in (0, 2):
        loader = stage_loader(make_config({"a": stories}, num_workers=workers))
        next(loader)
        prefix = loader._records._shm_prefix_int
        opened = blocks(prefix)
        assert len(opened) == 7  # six blocks, and the folder of lock files
        loader.close()
        loader.close()
        assert not blocks(prefix) & opened
        assert mapped() <= mapped_before
        assert threading.active_count() <= threads
        assert not multiprocessing.active_children()
    unopened = stage_loader(make_config({"a": stories}))
    unopened.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_random_states_are_let_alone(stories: Path, make_config: MakeConfig, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    with stage_loader(make_config({"a": stories}, num_workers=workers)) as loader:
        for _ in range(10):
            next(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == before[1:]


def test_many_epochs_leak_no_file_handles(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = write_dataset(tmp_path / "small", random_records(12))
    with stage_loader(make_config({"a": folder}, micro_batch_size=12, num_canonical_nodes=1)) as loader:
        for _ in range(3):
            next(loader)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            next(loader)
        assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_is_named(tmp_path: Path, make_config: MakeConfig, workers: int) -> None:
    records = random_records(24)
    records[5].units[2] = 50
    config = make_config({"a": write_dataset(tmp_path / "set", records)}, {"speech": {"a": 1.0}}, num_workers=workers)
    with (
        stage_loader(config) as loader,
        pytest.raises(UserError, match=r"^record 'r0005': units holds 50, which is outside .* of 50 ids$"),
    ):
        for _ in range(2):
            next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_ends_the_run(tmp_path: Path, make_config: MakeConfig, workers: int) -> None:
    folder = write_dataset(tmp_path / "set", random_records(24))
    config = make_config({"a": folder}, num_workers=workers)
    with stage_loader(config) as loader:
        (folder / "shard.00001.mds.zstd").write_bytes(b"garbage")
        with pytest.raises(UserError, match="shard.00001.mds.zstd is corrupted"):
            for _ in range(2):
                next(loader)


def test_a_remote_set_is_streamed(tmp_path: Path, stories: Path, make_config: MakeConfig, reference: list[Any]) -> None:
    origin = {path.name: path.read_bytes() for path in stories.iterdir() if not path.name.endswith(".mds")}
    remote = tmp_path / "bucket"
    remote.mkdir()
    for name, content in origin.items():
        (remote / name).write_bytes(content)
    sets = {"a": {"path": str(tmp_path / "cache"), "remote": str(remote)}}
    config = make_config(sets, num_canonical_nodes=NUM_CANONICAL_NODES)
    assert global_batches(config, 3, size=2) == reference[:3]
    assert {path.name: path.read_bytes() for path in remote.iterdir()} == origin
    # A shard that arrives damaged is noticed.
    (remote / "shard.00002.mds.zstd").write_bytes(origin["shard.00001.mds.zstd"])
    sets = {"a": {"path": str(tmp_path / "cache2"), "remote": str(remote)}}
    config = make_config(sets, download_retries=0)
    message = f"records cannot be read: {remote}/shard.00002.mds.zstd cannot be fetched: it arrived damaged 1 times"
    with stage_loader(config) as loader, pytest.raises(UserError, match=message):
        for _ in range(8):
            next(loader)


def test_cache_limit_never_deletes_the_only_copy(stories: Path, make_config: MakeConfig) -> None:
    with pytest.raises(
        UserError, match=r"data.cache_limit would delete shards of data.sets.a, which exist nowhere else"
    ):
        stage_loader(make_config({"a": stories}, cache_limit="1gb"))


def test_batches_must_divide(stories: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="global_batch_size 12 is not a multiple of train.micro_batch_size 2 times 5"):
        stage_loader(make_config({"a": stories}), size=5)


def test_one_folder_under_two_names(stories: Path, make_config: MakeConfig) -> None:
    config = make_config({"a": stories, "b": stories}, {"text": {"a": 1.0, "b": 1.0}})
    with pytest.raises(UserError, match="data.sets.a and data.sets.b are the same folder"):
        stage_loader(config)


def validate(folder: Path, strategy: str, count: int, micro: int, rank: int = 0, size: int = 1) -> Any:
    return validation_batches(
        DatasetConfig(path=str(folder)),
        strategy,  # type: ignore[arg-type]
        count,
        vocabulary=VOCABULARY,
        sequence_length=32,
        interleaving=InterleavingConfig(),
        micro_batch_size=micro,
        data_rank=rank,
        data_size=size,
    )


@pytest.mark.parametrize(("count", "size", "micro"), [(10, 1, 4), (10, 2, 3), (5, 4, 2), (1000, 1, 8)])
def test_validation(stories: Path, count: int, size: int, micro: int) -> None:
    expected = rows(list(validate(stories, "interleaved", min(count, 103), 1)))
    assert [row[0] for row in expected] == [f"r{i:04}" for i in range(min(count, 103))]
    found, lengths, scored = [], set(), 0
    for rank in range(size):
        batches = list(validate(stories, "interleaved", count, micro, rank, size))
        lengths.add(len(batches))
        for batch in batches:
            assert len(batch.record_ids) == micro
            scored += batch.num_text_scored + batch.num_speech_scored
            is_real = (batch.text_pred | batch.speech_pred).any(dim=1)
            found += [row for row, real in zip(rows([batch]), is_real, strict=True) if real]
    assert sorted(found) == sorted(expected)
    assert len(lengths) == 1, "every rank runs the model equally often"
    assert scored == sum(
        batch.num_text_scored + batch.num_speech_scored
        for batch in validate(stories, "interleaved", min(count, 103), 1)
    )


def test_batches_are_contiguous(stories: Path, make_config: MakeConfig) -> None:
    with stage_loader(make_config({"a": stories}, num_workers=1)) as loader:
        batch = next(loader)[0]
    for tensor in (batch.tokens, batch.targets, batch.speech_in, batch.speech_pred, batch.text_pred):
        assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous()


def test_loader_processes_that_are_stuck_do_not_hold_up_the_end(stories: Path, make_config: MakeConfig) -> None:
    """Though they ignore TERM: they are killed, and nothing is raised."""
    loader = stage_loader(make_config({"a": stories}, num_workers=2))
    next(loader)
    workers = loader._batches._workers  # type: ignore[union-attr]
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGSTOP)
    loader.close()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2
