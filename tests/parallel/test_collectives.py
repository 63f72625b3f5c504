"""Which ranks are of one node, however a launcher deals them out, and what they hear of one that failed."""

from pathlib import Path

import pytest
from warm import Warm

from tolktrain.errors import UserError
from tolktrain.parallel.collectives import first_ranks


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("a0 a1 b0 b1", [0, 0, 2, 2]),
        ("a0 b0 a1 b1", [0, 1, 0, 1]),  # srun --distribution=cyclic
        ("a0 a1 a2 b0", [0, 0, 0, 3]),
        ("a0 b0 b1 a1", [0, 1, 1, 0]),
        ("a0 a1 a0 a1", [0, 0, 2, 2]),  # two nodes that one machine pretends to be
        ("a0 a0 a0", [0, 1, 2]),  # each rank in a container, and started as a single one
    ],
)
def test_ranks_of_a_node_have_one_first(places: str, expected: list[int]) -> None:
    assert first_ranks([(place[0], int(place[1])) for place in places.split()]) == expected


def test_a_machine_without_a_first_rank_is_refused() -> None:
    with pytest.raises(UserError, match="rank 2 is the first one on its machine, but its launcher says local rank 1"):
        first_ranks([("a", 0), ("a", 1), ("b", 1)])


# Forks two ranks, of which rank 0 fails; each tells how the error came to it.
_RANKS = """
import os, sys
from datetime import timedelta
import torch.distributed as dist
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import on_each_node, on_rank_zero

def fail():
    raise UserError("the disk is full", by_machine=sys.argv[2] == "machine")

def rank_of(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    store = dist.FileStore(sys.argv[1], 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for act in (lambda: on_rank_zero(rank, fail), lambda: on_each_node(fail)):
        try:
            act()
        except UserError as error:
            os.write(1, f"{rank} {error.by_machine} {error}\\n".encode())
    dist.destroy_process_group()

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
child = os.fork()
rank_of(0 if child else 1)
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("kind", ["input", "machine"])
def test_all_ranks_know_whether_the_machine_or_the_input_is_at_fault(warm: Warm, tmp_path: Path, kind: str) -> None:
    done = warm.run("-c", _RANKS, tmp_path / "store", kind)
    expected = [f"{rank} {kind == 'machine'} the disk is full" for rank in (0, 0, 1, 1)]
    assert sorted(done.stdout.splitlines()) == expected, done.stderr
