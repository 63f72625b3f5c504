"""Whether each rank has a GPU of its own."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import machine


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


def check_devices_of_ranks(environment: ProcessEnvironment, node: str, timeout: timedelta | None = None) -> dist.Store:
    """The same for all ranks of the job; collective. Returns the store of the rendezvous, for the process group.

    Through the store of the rendezvous and before any process group exists: NCCL connects the GPUs when its first group
    is created, and would fail there with a message that names neither the ranks nor the cause. Rank 0 must keep the
    store, which ends with its last reference: other ranks may not have read the result.
    """
    options = {} if timeout is None else {"timeout": timeout}
    store, *_ = next(dist.rendezvous("env://", environment.rank, environment.world_size, **options))
    check_through(store, RankDevice.own(environment.rank, node), environment.world_size)
    return store


def check_through(store: dist.Store, own: RankDevice, world_size: int) -> None:
    """The same, each rank with its `own` device and a client of one store. Rank 0 compares; all raise its error."""
    prefixed = dist.PrefixStore("tolktrain/devices", store)
    prefixed.set(str(own.rank), json.dumps(asdict(own)))
    if own.rank == 0:
        devices = [json.loads(content) for content in prefixed.multi_get([str(rank) for rank in range(world_size)])]
        problem = ""
        try:
            check_own_devices([RankDevice(**device) for device in devices])
        except UserError as error:
            problem = str(error)
        prefixed.set("problem", problem or "none")
    found = prefixed.get("problem").decode()
    if found != "none":
        raise UserError(found)
