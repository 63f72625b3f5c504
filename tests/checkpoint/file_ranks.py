"""Run with a number of ranks: they write the same tensors, each its rows, into fewer and fewer files.

Usage: file_ranks.py FOLDER RANKS. Checkpoints go to FOLDER/<most files>/checkpoints. The last one cannot be written.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "processes"))

import torch
import torch.distributed as dist
from ports import free_port

from tolktrain.checkpoint import writer
from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.slices import Slice, Snapshot
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import initialize, shut_down

MOST_FILES = (8, 3, 2, 1)
ROWS = 23


def whole(kind: int) -> dict[str, torch.Tensor]:
    """The tensors that all ranks have together, of one kind; one is larger than what is sent at once."""
    generator = torch.Generator().manual_seed(kind)
    shapes = {"matrix": (ROWS, 5), "vector": (ROWS,), "cube": (ROWS, 2, 3), "scalar": (), "large": (ROWS, 200_000)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def own_slices(kind: int, rank: int, size: int) -> dict[str, Slice]:
    """A rank's rows of each tensor. Two series, as of two tensor ranks, have the columns of the matrix."""
    series, place, count = rank % 2, rank // 2, size // 2
    begin, end = ROWS * place // count, ROWS * (place + 1) // count
    slices: dict[str, Slice] = {}
    for name, tensor in whole(kind).items():
        if name == "scalar":
            if rank == size - 1:
                slices[name] = Slice.whole(tensor)
        elif name == "matrix":
            columns = slice(0, 2) if series == 0 else slice(2, 5)
            slices[name] = Slice(tensor[begin:end, columns].contiguous(), (begin, columns.start), tuple(tensor.shape))
        elif series == (name == "cube") and begin < end:
            slices[name] = Slice(tensor[begin:end].clone(), (begin, *[0] * (tensor.dim() - 1)), tuple(tensor.shape))
    return slices


def save_all(folder: Path) -> None:
    """One checkpoint for each number of files."""
    layout = initialize()
    rank, size = layout.rank, layout.world_size
    group = dist.new_group(backend="gloo")
    kinds = Snapshot(own_slices(0, rank, size), own_slices(1, rank, size), own_slices(2, rank, size))
    for most_files in (*MOST_FILES, 0):
        store = CheckpointStore(folder / str(most_files) / "checkpoints")
        on_rank_zero(rank, store.prepare)
        saver = CheckpointSaver(
            store, Retention(last=1), rank=rank, group=group, series=rank % 2, most_files=max(1, most_files)
        )
        if most_files:
            saver.save(1, kinds, {"step": 1})
        else:
            fail_to_save(saver, kinds, rank)
    shut_down()


def fail_to_save(saver: CheckpointSaver, kinds: Snapshot, rank: int) -> None:
    """The disk of a rank that writes for others is full: nothing is left, and the next one can be written."""
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    failure: Exception | None = None
    if rank == 1:
        writer.os.fsync = full  # type: ignore[attr-defined]
    try:
        saver.save(1, kinds, {"step": 1})
    except Exception as error:
        failure = error
    writer.os.fsync = fsync  # type: ignore[attr-defined]
    assert failure is not None and "No space left on device" in str(failure), failure
    saver.save(2, kinds, {"step": 2})


def rank_of(rank: int, *arguments: Any) -> None:
    """In a forked process."""
    code = 70
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        save_all(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Fork the ranks and wait for them."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    os.environ.update(
        WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), LOCAL_WORLD_SIZE=str(size)
    )
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            rank_of(rank, folder)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(f"exit codes {codes}" if any(codes) else 0)


if __name__ == "__main__":
    main()
