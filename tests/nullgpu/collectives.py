"""Collectives of two ranks on null GPUs, right and wrong ones: collectives.py NAME

Prints JSON: what the function of this name returns.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tolktrain.cluster.dump import describe_process, record_collectives
from tolktrain.cluster.health.exchange import measure_exchange
from tolktrain.cluster.health.probes import Probes
from tolktrain.parallel.layout import initialize

RANK = int(os.environ.get("RANK", "0"))


def messages() -> list[int]:
    """What is sent arrives, if it is small; so do broadcasts. Other values are zero."""
    device = torch.device("cuda", RANK)
    received = torch.zeros(3, dtype=torch.int64, device=device)
    if RANK == 0:
        dist.send(torch.tensor([3, 1, 4]).to(device), 1)
        dist.recv(received, 1)
    else:
        dist.recv(received, 0)
        dist.send(received, 0)
    found = received.tolist()
    received = torch.tensor([10 * (RANK + 1)], device=device)
    dist.broadcast(received, 1)
    return [*found, received.item()]


def num_splits() -> int:
    """Communicators that this rank has taken part in splitting off."""
    return len(list(Path(os.environ["NULLGPU_EXCHANGE"]).glob(f"*.split-*.{RANK}")))


def groups() -> list[int]:
    """Sizes and ranks of communicators are split off as torch asks for them. How many are split off when three groups
    are made, and when they are used; and the number of elements that the health check finds wrong in the last one."""
    before = num_splits()
    parts = [dist.new_group([rank]) for rank in range(2)]
    whole = dist.new_group([1, 0])
    made = num_splits()
    for group in (parts[RANK], whole):
        dist.all_reduce(torch.zeros(4, device="cuda"), group=group)
    used = num_splits()
    measured = measure_exchange(["node", "node"], torch.device("cuda", RANK), whole, Probes())
    sizes = [dist.get_world_size(parts[RANK]), dist.get_world_size(whole)]
    return [*sizes, made - before, used - made, measured.num_wrong_sums]


def unequal_sizes() -> str:
    """One rank reduces another number of elements."""
    return refused(lambda: dist.all_reduce(torch.zeros(4 + RANK, device="cuda")))


def unequal_kinds() -> str:
    """One rank is a collective ahead."""
    values = torch.zeros(4, device="cuda")
    return refused(lambda: dist.all_reduce(values) if RANK else dist.broadcast(values, 0))


def unequal_message() -> str:
    """More is received than was sent."""
    values = torch.zeros(4 + RANK, device="cuda")
    return refused(lambda: dist.recv(values, 0) if RANK else dist.send(values, 1))


def refused(call: Callable[[], object]) -> str:
    """The message of the exception. Both ranks make the call before one leaves."""
    text = ""
    try:
        call()
    except Exception as error:
        text = str(error)
    time.sleep(2)  # no collective: the group may be broken
    return text


def hang() -> str:
    """What the report of a hang says while an all-reduce never ends."""
    report: list[str] = []

    def watch() -> None:
        time.sleep(2)
        report.append(describe_process("waiting"))
        print(json.dumps(report[0]), flush=True)
        os._exit(0)

    threading.Thread(target=watch).start()
    values = torch.zeros(1234, device="cuda")
    dist.all_reduce(values)
    values.tolist()
    return "did not hang"


def main(name: str) -> None:
    """Run one of them."""
    record_collectives()
    initialize()
    dist.all_reduce(torch.zeros(1, device="cuda"))
    print(json.dumps(globals()[name]()), flush=True)
    os._exit(0)  # a broken group would wait for its other ranks


if __name__ == "__main__":
    main(sys.argv[1])
