"""Two ranks on one GPU are refused, and the GPU is named."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from tolktrain.errors import UserError
from tolktrain.parallel import layout
from tolktrain.parallel.devices import RankDevice, check_own_devices, check_through


def device(rank: int, machine: str, uuid: str, visible: str = "") -> RankDevice:
    return RankDevice(rank, machine, f"node-{machine}", uuid, "NVIDIA H200", visible)


def test_each_rank_has_its_own() -> None:
    """The same identifier on another machine is another GPU."""
    check_own_devices([device(0, "a", "GPU-1", "0,1"), device(1, "a", "GPU-2", "0,1"), device(2, "b", "GPU-1", "0")])


def test_two_ranks_with_one() -> None:
    ranks = [device(0, "a", "GPU-1", "3"), device(1, "a", "GPU-2", "1"), device(2, "a", "GPU-1", "3,1")]
    message = (
        "ranks 0 and 2 both use the GPU GPU-1 (NVIDIA H200) of node-a (CUDA_VISIBLE_DEVICES is '3' for rank 0 and '3,1'"
        " for rank 2); give each rank a GPU of its own"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        check_own_devices(ranks)


@pytest.mark.parametrize("uuids", [["GPU-1", "GPU-2", "GPU-3"], ["GPU-1", "GPU-2", "GPU-1"]])
def test_all_ranks_hear_of_it_before_there_is_a_process_group(uuids: list[str]) -> None:
    """Through a store, each rank as a client of its own."""
    initialized = dist.is_initialized()  # by another test
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def check(rank: int) -> str:
        store = dist.TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
        try:
            check_through(store, device(rank, "a", uuids[rank]), len(uuids))
        except UserError as error:
            return str(error)
        return "passed"

    with ThreadPoolExecutor(len(uuids)) as ranks:
        outcomes = list(ranks.map(check, reversed(range(len(uuids)))))
    assert dist.is_initialized() == initialized and len(set(outcomes)) == 1
    expected = "passed" if len(set(uuids)) == 3 else "ranks 0 and 2 both use the GPU GPU-1 (NVIDIA H200) of node-a"
    assert outcomes[0].startswith(expected)


def test_the_number_of_queues_is_set_before_a_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver reads the variable when it starts."""
    seen: list[str | None] = []

    def first_question() -> None:
        seen.append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
        raise InterruptedError

    monkeypatch.setattr(layout, "stand_in_for_cuda", first_question)
    for tensor in (1, 2):
        monkeypatch.setattr(os, "environ", {})
        with pytest.raises(InterruptedError):
            layout.initialize(tensor=tensor)
    assert seen == [None, "1"]
