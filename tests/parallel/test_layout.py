"""The layout in one process, under torchrun's variables, and what is refused."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tolktrain.config.errors import UserError
from tolktrain.parallel import layout
from tolktrain.parallel.layout import initialize

ALONE = """
import sys
from tolktrain.parallel.layout import initialize, shut_down
layout = initialize()
assert initialize() == layout
assert (layout.rank, layout.world_size, layout.data_size, layout.tensor_size) == (0, 1, 1, 1)
assert layout.data_group.size() == 1
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


def environment(**extra: str) -> dict[str, str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    return {**inherited, "OMP_NUM_THREADS": "1", **extra}


def test_a_single_process_needs_nothing_and_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "not installed" not in done.stderr


def test_two_replicas_under_torchrun_variables() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen([sys.executable, "-c", REPLICA], env=environment(RANK=r, LOCAL_RANK=r, **shared)) for r in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def test_layouts_of_later_versions_are_refused() -> None:
    with pytest.raises(UserError, match="tensor_parallel_size 2, .* not supported yet"):
        initialize(tensor=2)
    with pytest.raises(UserError, match="not supported yet"):
        initialize(pipeline=2)


def test_a_rank_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}
    for name, value in {**variables, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    for visible, device in ((1, 0), (4, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        layout._start_distributed()
        assert chosen.pop() == device
