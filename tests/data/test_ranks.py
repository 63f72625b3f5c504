"""Two real ranks of one node, which share memory and loader processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import NUM_CANONICAL_NODES, global_batches, stage_loader

from tolktrain.config import Config
from tolktrain.data import mixture

MakeConfig = Callable[..., Config]

RANK = """
import json, os, sys
from torch import distributed
sys.path.insert(0, sys.argv[1])
from stages import rows, stage_loader
from tolktrain.config import Config

config = Config.model_validate(json.loads(sys.argv[2]))
rank, size, data_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[3])
distributed.init_process_group("gloo")
steps = []
# Two stages one after the other, on the same folder.
for start in (0, 3):
    with stage_loader(config, start, rank % data_size, data_size) as loader:
        for _ in range(9):
            batch = rows(next(loader))
            steps.append([[value.hex() if isinstance(value, bytes) else value for value in row] for row in batch])
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps(steps))
"""


def run_ranks(config: Config, data_size: int) -> list[list[list[list[str]]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", RANK, str(Path(__file__).parent), config.model_dump_json(), str(data_size)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output) for output in outputs]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks(stories: Path, make_config: MakeConfig, workers: int) -> None:
    config = make_config({"a": stories}, num_workers=workers, num_canonical_nodes=NUM_CANONICAL_NODES)
    one = global_batches(make_config({"a": stories}, num_canonical_nodes=NUM_CANONICAL_NODES), 12)
    expected = [[[v.hex() if isinstance(v, bytes) else v for v in row] for row in batch] for batch in one]
    ranks = run_ranks(config, data_size=2)
    merged = [sorted([*first, *second]) for first, second in zip(*ranks, strict=True)]
    assert [[row[:3] for row in batch] for batch in merged] == [
        [row[:3] for row in batch] for batch in (*expected[:9], *expected[3:])
    ]


def test_ranks_of_one_data_rank_get_the_same(stories: Path, make_config: MakeConfig) -> None:
    config = make_config({"a": stories}, num_workers=1, num_canonical_nodes=NUM_CANONICAL_NODES)
    first, second = run_ranks(config, data_size=1)
    assert first == second and len(first) == 18


@pytest.mark.parametrize(("nodes", "size"), [(2, 4), (4, 4), (12, 12), (3, 6)])
def test_nodes_do_not_change_global_batches(
    stories: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, nodes: int, size: int
) -> None:
    config = make_config({"a": stories}, micro_batch_size=1, num_canonical_nodes=NUM_CANONICAL_NODES)
    expected = global_batches(config, 10)
    number_of_nodes = mixture._num_nodes
    monkeypatch.setattr(mixture, "_num_nodes", lambda _, *others: number_of_nodes(nodes, *others))
    assert global_batches(config, 10, size=size) == expected


def test_layouts_that_do_not_divide_fall_back_to_one_node(caplog: pytest.LogCaptureFixture) -> None:
    assert [mixture._num_nodes(n, 24, 8) for n in (1, 2, 4, 8, 24)] == [1, 2, 4, 8, 24]
    assert not caplog.records
    assert mixture._num_nodes(3, 24, 8) == 1
    assert "3 nodes do not go with data.num_canonical_nodes 8" in caplog.text
    assert mixture._num_nodes(16, 24, 8) == 1


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


def test_a_killed_run_does_not_block_the_next(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    # The library refuses a cache folder that shared memory says is in use; only remote sets have one.
    remote = tmp_path / "remote"
    remote.mkdir()
    for path in stories.glob("*[!s]"):
        (remote / path.name).write_bytes(path.read_bytes())
    config = make_config({"a": {"path": str(tmp_path / "cache"), "remote": str(remote)}}, num_workers=1)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), config.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    block = Path("/dev/shm", f"{int(process.stdout.readline()):06}_locals")
    assert block.exists()
    # With the whole session goes the tracker that would have removed the shared memory.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert block.exists()
    with stage_loader(config) as loader:
        assert len(next(loader)) == 6
    assert not block.exists()
