"""Two ranks on one GPU are refused, and the GPU is named."""

import re

import pytest

from tolktrain.errors import UserError
from tolktrain.parallel.devices import RankDevice, check_own_devices


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
