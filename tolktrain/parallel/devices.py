"""Whether each rank has a GPU of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import all_gather_objects, machine


@dataclass(frozen=True)
class RankDevice:
    """The GPU that a rank uses."""

    rank: int
    machine: str  # the same for all containers of a machine
    node: str  # its name
    uuid: str  # of the GPU, or of its MIG instance
    name: str
    visible: str  # CUDA_VISIBLE_DEVICES, as the rank found it

    @classmethod
    def own(cls, rank: int, node: str) -> "RankDevice":
        """The current device of this process."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        # Instances of a partitioned GPU may report the identifier of the whole.
        uuid = visible if visible.startswith("MIG-") and "," not in visible else str(properties.uuid)
        return cls(rank, machine(), node, uuid, properties.name, visible)


def check_own_devices(devices: Sequence[RankDevice]) -> None:
    """Raise UserError if two ranks use one GPU: NCCL would fail, or both would compute at half the speed."""
    users: dict[tuple[str, str], RankDevice] = {}
    for device in devices:
        other = users.setdefault((device.machine, device.uuid), device)
        if other is not device:
            seen = " and ".join(f"{one.visible!r} for rank {one.rank}" for one in (other, device))
            raise UserError(
                f"ranks {other.rank} and {device.rank} both use the GPU {device.uuid} ({device.name}) of"
                f" {device.node} (CUDA_VISIBLE_DEVICES is {seen}); give each rank a GPU of its own: start at most as"
                " many ranks on a node as it has GPUs, and let CUDA_VISIBLE_DEVICES name as many, or be unset"
            )


def check_devices_of_ranks(environment: ProcessEnvironment, node: str) -> None:
    """The same for all ranks of the job; collective."""
    if environment.world_size > 1:
        check_own_devices(all_gather_objects(RankDevice.own(environment.rank, node)))
