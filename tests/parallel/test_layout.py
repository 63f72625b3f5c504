"""The layout in one process, under torchrun's variables, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch
from warm import Warm, wait_for_all

from tolktrain.errors import UserError
from tolktrain.parallel import layout
from tolktrain.parallel.layout import initialize

ALONE = """
import sys
from tolktrain.libraries.torch_compat import ranks_of_groups
from tolktrain.parallel.layout import initialize, release_groups, shut_down
layout = initialize()
assert initialize() == layout
assert (layout.rank, layout.world_size, layout.data_size, layout.tensor_size) == (0, 1, 1, 1)
assert layout.data_group.size() == 1
assert len(ranks_of_groups()) > 1
release_groups()
assert list(ranks_of_groups().values()) == [[0]], "only the default group is left"
assert initialize() == layout
shut_down()
assert initialize() == layout
"""
REPLICA = """
import torch
from tolktrain.parallel.layout import initialize, shut_down
layout = initialize()
total = torch.tensor([layout.data_rank + 1.0])
torch.distributed.all_reduce(total, group=layout.data_group)
assert layout.data_size == layout.world_size == 2 and total.item() == 3.0
shut_down()
"""
# Groups without processes: torch's fake backend lets one process be each rank in turn.
EVERY_RANK = """
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from tolktrain.parallel.layout import initialize, shut_down
from tolktrain.train.deepspeed.groups import check_same_groups
for tensor, pipeline, data in ((2, 2, 2), (3, 4, 1)):
    world_size = tensor * pipeline * data
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        layout = initialize(tensor, pipeline)
        assert (layout.tensor_size, layout.pipeline_size, layout.data_size) == (tensor, pipeline, data)
        assert rank == (layout.pipeline_rank * data + layout.data_rank) * tensor + layout.tensor_rank
        check_same_groups(layout)
        replica = dist.get_process_group_ranks(layout.replica_group)
        assert len(replica) == tensor * pipeline and rank in replica
        assert (layout.ends_group is not None) == (layout.pipeline_rank in (0, pipeline - 1))
        shut_down()
    print(world_size)
"""


def environment(**extra: str) -> dict[str, str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    return {**inherited, "OMP_NUM_THREADS": "1", **extra}


def test_a_single_process_needs_nothing_and_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not installed" not in done.stderr


@pytest.mark.slow
def test_two_replicas_under_torchrun_variables(warm: Warm) -> None:
    ranks = warm.start_ranks(2, "-c", REPLICA)
    assert wait_for_all(ranks, 120) == [0, 0], [rank.errors for rank in ranks]


def test_groups_are_deepspeeds_for_every_rank_of_many_layouts(warm: Warm) -> None:
    done = warm.run("-c", EVERY_RANK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "12"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 2}, "needs a multiple of 2 processes, but there are 1; use 2 processes or parallel.tensor_paral"),
        ({"tensor": 2, "pipeline": 3}, "tensor_parallel_size 2 times pipeline_parallel_size 3 needs a multiple of 6"),
    ],
)
def test_too_few_processes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        initialize(**sizes)


@pytest.mark.parametrize(
    ("world_size", "tensor", "pipeline", "proposal"),
    [
        (8, 3, 1, "needs a multiple of 3 processes, but there are 8; use 9 processes or parallel.tensor_parallel_size"),
        (12, 2, 4, "use 16 processes or parallel.tensor_parallel_size 3 or parallel.pipeline_parallel_size 6"),
    ],
)
def test_the_refusal_proposes_what_would_work(world_size: int, tensor: int, pipeline: int, proposal: str) -> None:
    assert proposal in layout._indivisible(world_size, tensor, pipeline)


def test_a_rank_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}
    for name, value in {**variables, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    bound: list[torch.device] = []  # to the groups of NCCL
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, device_id, **__: bound.append(device_id))
    monkeypatch.setattr(layout, "check_devices_of_ranks", lambda *_: torch.distributed.HashStore())
    for visible, device in ((1, 0), (4, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        layout._start_distributed(None)
        assert chosen.pop() == device
        assert bound.pop() == torch.device("cuda", device)
