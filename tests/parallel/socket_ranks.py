"""Forks ranks that start like a training, use all their groups, and save; each tells how many sockets it then has.

Usage: socket_ranks.py LIMIT FOLDER LAYOUT ..., with a soft limit of open files that is too low, as a job may have, and
layouts such as 8x2x2: ranks, tensor size, pipeline size. What each rank has goes to
FOLDER/<layout>/rank-<n>.json. No rank imports anything: this process has done it for all.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "processes"))

import torch
import torch.distributed as dist
from ports import free_port

from tolktrain.checkpoint import writer  # noqa: F401  # else imported by the first save of each rank
from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.slices import Slice, Snapshot
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.health import probes
from tolktrain.cluster.health.exchange import measure_exchange, read_clocks
from tolktrain.cluster.open_files import needed_files
from tolktrain.cluster.watch.watchdog import Watch, collective_timeout
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.resume import latest_valid_checkpoint

NUM_STEPS = 3


def main() -> None:
    """One layout after the other."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for name in sys.argv[3:]:
        folder = Path(sys.argv[2]) / name
        folder.mkdir()
        num_ranks, tensor, pipeline = map(int, name.split("x"))
        run_layout(folder, num_ranks, tensor, pipeline)


def run_layout(folder: Path, num_ranks: int, tensor: int, pipeline: int) -> None:
    """Fork the ranks and wait for them. Ends this process if one fails."""
    os.environ.update(WORLD_SIZE=str(num_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ["LOCAL_WORLD_SIZE"] = str(num_ranks)
    children = [fork(lambda rank=rank: rank_of(folder, rank, tensor, pipeline)) for rank in range(num_ranks)]  # type: ignore[misc]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{folder.name}: exit codes {codes}")


def fork(work: Callable[[], None]) -> int:
    """The process in which `work` is done."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        work()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def rank_of(folder: Path, rank: int, tensor: int, pipeline: int) -> None:
    """One rank, from its watch to its last checkpoint."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    environment = ProcessEnvironment.detect()
    watch = Watch.start(environment, lambda error: (str(error), 1))
    layout = initialize(tensor, pipeline, timeout=collective_timeout(60))
    nodes = [f"node-{number // 2}" for number in range(layout.world_size)]
    read_clocks(lambda: 0.0)
    measure_exchange(nodes, layout.device, None, probes.Probes())
    saver_group = dist.new_group(backend="gloo", timeout=collective_timeout(60))
    store = CheckpointStore(folder / "run" / "checkpoints")
    on_rank_zero(rank, store.prepare)
    saver = CheckpointSaver(store, Retention(last=1), rank=rank, group=saver_group)
    for step in range(1, NUM_STEPS + 1):
        use(layout)
        rows = torch.full((1, 4), float(rank))
        saver.save(step, Snapshot({"weight": Slice(rows, (rank, 0), (layout.world_size, 4))}), {"step": step})
    found = latest_valid_checkpoint(store, layout)
    assert found is not None and found.name == f"step-{NUM_STEPS:08d}"
    answer = {"sockets": count_sockets(), "files": count_files(), "needed": needed_files(environment)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    watch.finish(0)


def use(layout: Layout) -> None:
    """What a start and the steps have: broadcasts from rank 0 and gathers over all, sums over each group."""
    on_rank_zero(layout.rank, lambda: "for all")
    for group in (None, layout.data_group, layout.tensor_group, layout.pipeline_group, layout.replica_group):
        size = dist.get_world_size(group)
        numbers = torch.ones(1000)
        dist.all_reduce(numbers, group=group)
        assert numbers[0].item() == size
        ranks: list[object] = [None] * size
        dist.all_gather_object(ranks, layout.rank, group=group)
        assert ranks == dist.get_process_group_ranks(group or dist.group.WORLD)


def count_sockets() -> int:
    """Open sockets of this process."""
    return sum(_target(descriptor).startswith("socket:") for descriptor in Path("/proc/self/fd").iterdir())


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:  # of the listing itself
        return ""


def count_files() -> int:
    """All descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
