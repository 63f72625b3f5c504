"""Two real ranks of one node, which share memory and loader processes."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from other_processes import come_and_go, open_used_cache, run_processes, run_rank, server
from ports import free_port
from s3_server import S3Server
from stages import NUM_CANONICAL_NODES, global_batches, stage_loader
from warm import Warm

from tolktrain.config import Config
from tolktrain.data import mixture
from tolktrain.data.shared_memory import _exclusive

MakeConfig = Callable[..., Config]

Rows = list[list[list[tuple[Any, ...]]]]  # per case, step and row


def run_ranks(
    cases: list[tuple[Config, int]],
    results: Path,
    num_ranks: int = 2,
    environ: Mapping[str, str] = MappingProxyType({}),
    starts: Sequence[int] = (0, 3),
    num_nodes: int = 1,
) -> list[Rows]:
    """Run ranks on some cases, each a configuration and its data-parallel size."""
    others = (num_ranks, free_port(), cases, results, dict(environ), starts, num_nodes)
    run_processes(run_rank, [(rank, *others) for rank in range(num_ranks)])
    return [torch.load(results / f"rank{rank}.pt") for rank in range(num_ranks)]


def test_two_ranks(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    plain, forked = (
        make_config({"a": stories}, num_workers=workers, num_canonical_nodes=NUM_CANONICAL_NODES) for workers in (0, 2)
    )
    one = global_batches(plain, 12)
    expected = [*one[:9], *one[3:]]
    first, second = run_ranks([(plain, 2), (forked, 2), (forked, 1)], tmp_path)
    for case in (0, 1):
        merged = [sorted([*a, *b]) for a, b in zip(first[case], second[case], strict=True)]
        assert merged == expected
    # Ranks of one data rank, such as tensor-parallel ones, get the same batches.
    assert first[2] == second[2]
    assert [sorted(batch) for batch in first[2]] == expected


@pytest.mark.slow
def test_any_ranks_and_workers_stream_the_same_batches_from_s3(
    tmp_path: Path, stories: Path, stored_stories: str, s3_server: S3Server, make_config: MakeConfig
) -> None:
    """Four real ranks, as 4 and 2 data ranks, without and with loader processes, resumed in the second epoch."""
    one = global_batches(make_config({"a": stories}, num_canonical_nodes=NUM_CANONICAL_NODES), 20)
    starts = (0, 11)
    expected = [batch for start in starts for batch in one[start : start + 9]]
    cases = []
    for data_size, workers in ((4, 0), (2, 2)):
        sets = {"a": {"path": str(tmp_path / f"cache-{data_size}-{workers}"), "remote": stored_stories}}
        options = {"num_workers": workers, "num_canonical_nodes": NUM_CANONICAL_NODES}
        cases.append((make_config(sets, micro_batch_size=1, **options), data_size))
    made = run_ranks(cases, tmp_path, 4, s3_server.environ, starts)
    for case, (_, data_size) in enumerate(cases):
        data_ranks = [steps[case] for steps in made[:data_size]]
        assert [sorted(sum(parts, [])) for parts in zip(*data_ranks, strict=True)] == expected
        assert all(steps[case] == made[rank % data_size][case] for rank, steps in enumerate(made))


def test_two_nodes(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    config = make_config({"a": stories}, micro_batch_size=1, num_workers=1, num_canonical_nodes=NUM_CANONICAL_NODES)
    made = run_ranks([(config, 4)], tmp_path, 4, num_nodes=2)
    one = global_batches(config, 12)
    assert [sorted(sum(parts, [])) for parts in zip(*(steps[0] for steps in made), strict=True)] == [*one[:9], *one[3:]]


@pytest.mark.slow
def test_jobs_that_come_and_go_do_not_disturb(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    config = make_config({"a": stories}, num_workers=0, num_canonical_nodes=NUM_CANONICAL_NODES)
    context = server()
    stopping = context.Event()
    others = context.Process(target=come_and_go, args=(stopping,))
    others.start()
    try:
        first, second = run_ranks([(config, 2)], tmp_path, starts=(0, 1) * 5)
        assert others.is_alive()
    finally:
        stopping.set()
        others.join()
    expected = [batch for start in (0, 1) * 5 for batch in global_batches(config, 10)[start : start + 9]]
    assert [sorted([*a, *b]) for a, b in zip(first[0], second[0], strict=True)] == expected


@pytest.mark.parametrize(("nodes", "size"), [(2, 4), (4, 4), (12, 12), (3, 6), (3, 12), (5, 12), (6, 12), (12, 4)])
def test_nodes_do_not_change_global_batches(
    stories: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, nodes: int, size: int
) -> None:
    config = make_config({"a": stories}, micro_batch_size=1, num_canonical_nodes=NUM_CANONICAL_NODES)
    expected = global_batches(config, 10)
    world_of = mixture.data_world
    monkeypatch.setattr(mixture, "data_world", lambda _, *others: world_of(nodes, *others))
    assert global_batches(config, 10, size=size) == expected


KILLED = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from stages import stage_loader
from tolktrain.config import Config

loader = stage_loader(Config.model_validate(json.loads(sys.argv[2])))
next(loader)
print(loader._records._shm_prefix_int, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def living_run(warm: Warm, config: Config) -> Iterator[Path]:
    """A block of the shared memory of another run."""
    process = warm.start("-c", KILLED, Path(__file__).parent, config.model_dump_json(), new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not process.output.endswith("\n"):
            assert process.poll() is None and time.monotonic() < deadline, process.errors
            time.sleep(0.01)
        block = Path("/dev/shm", f"{int(process.output):06}_locals")
        assert block.exists()
        yield block
    finally:
        # With the whole session goes the tracker that would have removed the shared memory.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def cached(tmp_path: Path, stories: Path, make_config: MakeConfig) -> Config:
    """Of a run that keeps its data in a cache; only remote sets have one."""
    remote = tmp_path / "remote"
    remote.mkdir()
    for path in stories.glob("*[!s]"):
        (remote / path.name).write_bytes(path.read_bytes())
    return make_config({"a": {"path": str(tmp_path / "cache"), "remote": str(remote)}}, num_workers=1)


@pytest.mark.slow
def test_a_cache_in_use_is_refused(warm: Warm, tmp_path: Path, cached: Config) -> None:
    with living_run(warm, cached):
        port = free_port()
        ranks = [server().Process(target=open_used_cache, args=(rank, port, cached, tmp_path)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=300)
    outcomes = [(tmp_path / f"outcome-{rank}").read_text() for rank in range(2)]
    assert outcomes[0] == outcomes[1]
    assert re.search(r"process \d+ on this node has \S+cache open, and no other may fill it", outcomes[0])


@pytest.mark.slow
def test_a_killed_run_does_not_block_the_next(warm: Warm, cached: Config) -> None:
    with contextlib.ExitStack() as held:
        with living_run(warm, cached) as block:
            held.enter_context(_exclusive())  # else the next job of another test may remove the block
            inode = block.stat().st_ino
        assert block.exists()
    with stage_loader(cached) as loader:
        assert len(next(loader)) == 6
    with contextlib.suppress(FileNotFoundError):
        assert block.stat().st_ino != inode  # another job may take a name as soon as it is free
