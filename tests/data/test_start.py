"""What the ranks of a node share when they start: one of them fetches, reads and verifies, and all hear of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import random_records, write_dataset
from fault_proxy import FaultProxy
from other_processes import check_sets, deal_out, fail_on_a_node, run_processes
from ports import free_port
from s3_server import S3Server

from tolktrain.config import Config
from tolktrain.data.checks import check_data
from tolktrain.data.index import identity_of, read_index
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage
from tolktrain.vocabulary import Vocabulary

MakeConfig = Callable[..., Config]
DESCRIPTIONS = ("index.json", "dataset.json")


def start(config: Config, environ: Any, results: Path, num_ranks: int, num_nodes: int = 1) -> list[list[Any]]:
    """The outcome on each rank of a start on some nodes."""
    port = free_port()
    run_processes(
        check_sets, [(rank, num_ranks, port, num_nodes, config, dict(environ), results) for rank in range(num_ranks)]
    )
    return [torch.load(results / f"outcome-{rank}.pt", weights_only=False) for rank in range(num_ranks)]


@pytest.fixture
def stored(stories: Path, bucket: str, s3_server: S3Server) -> Storage:
    """The descriptions of the stories in a bucket of their own; no shard is needed to check them."""
    storage = open_storage(f"{bucket}/stories")
    for name in DESCRIPTIONS:
        storage.upload(stories / name, name)
    return storage


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_a_node_fetches_each_description_once(
    tmp_path: Path, stored: Storage, make_config: MakeConfig, fault_proxy: FaultProxy, num_nodes: int
) -> None:
    """Also where the caches of the nodes are one folder, as here; and once more for each later start."""
    config = make_config({"a": {"path": str(tmp_path / "cache"), "remote": stored.address}})
    for starts in (1, 2):
        outcomes = start(config, fault_proxy.environ, tmp_path, 4, num_nodes)
        assert outcomes == [[Vocabulary(100, 0, 50, 1)]] * 4
        for name in DESCRIPTIONS:
            assert fault_proxy.requested(f"GET */{name}*") == num_nodes * starts


def test_all_ranks_are_told_of_a_set_that_was_rebuilt(
    tmp_path: Path, stored: Storage, stories: Path, make_config: MakeConfig, fault_proxy: FaultProxy
) -> None:
    cache = tmp_path / "cache"
    config = make_config({"a": {"path": str(cache), "remote": stored.address}})
    check_data(config, 100)
    shard = next(stories.glob("*.zstd"))
    (cache / shard.name).write_bytes(shard.read_bytes())
    for path in write_dataset(tmp_path / "rebuilt", random_records(90, seed=1)).glob("*.json"):
        stored.upload(path, path.name)
    outcomes = start(config, fault_proxy.environ, tmp_path, 4, 2)
    assert outcomes == [outcomes[0]] * 4
    assert "the data set was rebuilt since the cache folder" in outcomes[0][0]


def test_nodes_share_out_the_shards_of_a_shared_folder(tmp_path: Path, stories: Path, make_config: MakeConfig) -> None:
    outcomes = start(make_config({"a": stories}), {}, tmp_path, 4, 2)
    vocabulary = Vocabulary(100, 0, 50, 1)
    assert outcomes == [[(0, 2), vocabulary], [vocabulary], [(1, 2), vocabulary], [vocabulary]]


def test_a_bad_shard_is_named_on_all_ranks_whichever_node_verifies_it(tmp_path: Path, make_config: MakeConfig) -> None:
    for number in (0, 1):
        folder = write_dataset(tmp_path / f"set-{number}", random_records(60))
        path = sorted(folder.glob("*.zstd"))[number]
        path.write_bytes(path.read_bytes()[:-1])
        outcomes = start(make_config({"a": folder}), {}, tmp_path, 2, 2)
        messages = [rank[-1] for rank in outcomes]
        assert messages == [messages[0]] * 2
        assert f"the shard {path} is" in messages[0]


def test_copies_on_several_nodes_are_verified_whole(stories: Path, tmp_path: Path) -> None:
    """A copy is another folder, although its files have the same names, sizes and times."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        target = folder / "index.json"
        target.write_bytes((stories / "index.json").read_bytes())
        status = (stories / "index.json").stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    one, two = (identity_of(folder / "index.json") for folder in folders)
    assert one != two
    assert one == identity_of(folders[0] / "index.json")


def test_a_failure_on_one_node_is_raised_on_all(tmp_path: Path) -> None:
    port = free_port()
    run_processes(fail_on_a_node, [(rank, port, tmp_path) for rank in range(4)])
    outcomes = [torch.load(tmp_path / f"outcome-{rank}.pt", weights_only=False) for rank in range(4)]
    refused = ("UserError", "the disk of node 1 is bad")
    other = ("OtherRankFailed", "rank 2 failed: KeyError: 'node 1'")
    assert [rank[0] for rank in outcomes] == [refused] * 4
    assert [rank[1] for rank in outcomes] == [other, other, ("KeyError", "'node 1'"), other]
    assert [rank[2] for rank in outcomes] == ["rank 0", "rank 0", "rank 2", "rank 2"]
    assert [rank[3] for rank in outcomes] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_nodes_are_found_however_ranks_are_dealt_out(tmp_path: Path, stories: Path) -> None:
    """Checks work for any distribution. Training does not: the order of the records supposes nodes of equal size."""
    port, shards = free_port(), len(read_index(stories))
    run_processes(deal_out, [(rank, port, stories, tmp_path) for rank in range(4)])
    outcomes = [torch.load(tmp_path / f"outcome-{rank}.pt", weights_only=False) for rank in range(4)]
    refused = outcomes[0][3]
    assert "start as many tasks on each node (srun --distribution=block)" in refused
    in_turn = [["rank 0", [0, 2], shards, refused], ["rank 1", [1, 3], shards, refused]] * 2
    unevenly = [["rank 0", [0, 1, 2], shards, refused]] * 3 + [["rank 3", [3], shards, refused]]
    assert outcomes == [first + second for first, second in zip(in_turn, unevenly, strict=True)]
