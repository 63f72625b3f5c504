"""What is compared before a run: shared memory, and which shards each node reads."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tolktrain.config import Config
from tolktrain.data import capacity
from tolktrain.data.capacity import _Node, check_capacity, shared_memory_bytes
from tolktrain.data.epoch import create_rows
from tolktrain.data.order import EpochOrder
from tolktrain.errors import UserError

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 100])
def test_nodes_of_eight_ranks_read_their_part(num_nodes: int) -> None:
    """Whatever their number: no node reads much more than its part, and together they read all."""
    size = 8 * num_nodes
    nodes = [_Node(num_nodes, range(8 * n, 8 * n + 8), size, 8).canonical_nodes for n in range(num_nodes)]
    assert set().union(*nodes) == set(range(8))
    assert max(map(len, nodes)) <= math.ceil(8 / num_nodes) + (8 % num_nodes != 0)


def test_nodes_that_share_a_replica_read_its_part() -> None:
    """Eight nodes of eight ranks with four replicas: two nodes for each, which read a quarter."""
    nodes = [_Node(8, [n // 2] * 8, 4, 8).canonical_nodes for n in range(8)]
    assert [len(node) for node in nodes] == [2] * 8
    assert set().union(*nodes) == set(range(8))


def test_counts_under_which_every_node_reads_everything_are_found() -> None:
    """One data rank a node: only odd numbers of nodes have no divisor in common with eight canonical nodes."""
    needless = [n for n in range(1, 21) if _Node(n, [0], n, 8).reads_all_needlessly]
    assert needless == [3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert _Node(3, [0], 3, 8).other_counts() == [2, 4, 6, 8, 10, 12, 14, 16]
    # All data ranks on each node, as with pipeline stages on different nodes: nothing can be spared.
    assert not _Node(3, range(3), 3, 8).reads_all_needlessly


def test_endless_fetching_is_refused(
    stories: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RANK", "0")
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    sets = {"a": {"path": str(stories), "remote": "s3://nowhere"}}
    with pytest.raises(UserError) as refused:
        check_capacity(make_config(sets, num_canonical_nodes=8, cache_limit="20kb"), 0, 3)
    assert "each of the 3 nodes reads all shards" in str(refused.value)
    assert "use 2, 4, 6, 8, 10, 12, 14, 16 of them" in str(refused.value)
    assert "raise data.cache_limit 20kb" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        check_capacity(make_config(sets, num_canonical_nodes=8, cache_limit="1gb"), 0, 3)
    assert "each of the 3 nodes reads all shards" in caplog.text
    caplog.clear()
    check_capacity(make_config({"a": stories}, num_canonical_nodes=8), 0, 3)  # a folder needs no fetching
    check_capacity(make_config(sets, num_canonical_nodes=9, cache_limit="20kb"), 0, 3)
    assert not caplog.records


def test_shared_memory_is_compared_before(
    stories: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"a": stories}, num_workers=4, num_canonical_nodes=4)
    node = _Node(1, range(8), 8, 4)
    needed = shared_memory_bytes(config, config.train.stages[0].mixture, node)
    assert needed > 8 * 4 * 4 * 2 * 32 * 16  # the batches alone
    real = os.statvfs
    free = needed

    def small(path: Path) -> os.statvfs_result:
        fields = list(real(path))
        fields[0] = fields[1] = 1  # sizes of a block
        fields[2], fields[3], fields[4] = needed, free, free
        return os.statvfs_result(fields)

    monkeypatch.setattr(capacity, "on_this_node", lambda _: list(range(8)))
    monkeypatch.setattr(os, "statvfs", small)
    check_capacity(config, 0, 8)
    free -= 1
    with pytest.raises(UserError, match=r"/dev/shm has \S+ MiB free, but .* need \S+ MiB .*--shm-size=1g.*size=1g"):
        check_capacity(config, 0, 8)


SMALL = """
import sys
from pathlib import Path
import numpy as np
from tolktrain.errors import UserError
from tolktrain.data.epoch import create_rows
from tolktrain.data.order import EpochOrder

order = EpochOrder((np.full(1000, 1000),), (1_000_000,), 4, 1, 4096)
path = Path(sys.argv[1], "000001_epoch_data")
try:
    create_rows(path, order, 0, range(4))
except UserError as error:
    assert not path.exists()
    print(error)
create_rows(path, order, 0, [2])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
def test_memory_that_is_full_is_no_fatal_signal(tmp_path: Path) -> None:
    """Writing to a shared memory that is full ends a process with SIGBUS; here it is a refusal."""
    script = f"mount -t tmpfs -o size=2m none {tmp_path} && exec {sys.executable} -c '{SMALL}' {tmp_path}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 MiB free, but the loaders of this node need 4 MiB there" in done.stdout


def test_rows_take_what_was_promised(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    order = EpochOrder((np.full(100, 100),), (10_000,), 4, 1, 4096)
    create_rows(tmp_path / "rows", order, 0, [1, 3])
    assert (tmp_path / "rows").stat().st_size == 2 * 2500 * 4
    assert replace(order, counts=(5_000,)).row_length == 1250
