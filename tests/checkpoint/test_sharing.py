"""Neighbours that share a file: the same tensors in fewer files, readable by all who could read them before."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent))

import file_ranks
from warm import Warm

from tolktrain.checkpoint.manifest import verify
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.sharing import Block, SharedFile, share_files
from tolktrain.checkpoint.slices import KINDS
from tolktrain.checkpoint.store import CheckpointStore

RANKS = 8


@pytest.fixture(scope="module")
def saved(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints that eight ranks have written, by the most files that they were to have."""
    folder = tmp_path_factory.mktemp("files")
    done = warm.run(file_ranks.__file__, folder, str(RANKS))
    assert done.returncode == 0, done.stderr[-5000:]
    folders = {most: folder / str(most) / "checkpoints" for most in (*file_ranks.MOST_FILES, 0)}
    return {most: CheckpointStore(checkpoints).latest_first()[0] for most, checkpoints in folders.items()}


@pytest.mark.parametrize(("most_files", "expected"), [(8, 8), (3, 2), (2, 2), (1, 2), (0, 2)])
@pytest.mark.slow
def test_every_tensor_is_there_whoever_wrote_it(saved: Mapping[int, Path], most_files: int, expected: int) -> None:
    """Two series never share one. After a save that failed for a full disk, the next one is complete."""
    folder = saved[most_files]
    verify(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith((".tmp", "step"))] == [folder.name]
    files = sorted((folder / "tensors").iterdir())
    assert [path.name for path in files] == [
        f"shard-{n + 1:05d}-of-{expected:05d}.safetensors" for n in range(expected)
    ]
    with CheckpointReader(folder) as reader:
        for number, kind in enumerate(KINDS):
            for name, tensor in file_ranks.whole(number).items():
                assert torch.equal(reader.read_whole(kind, name), tensor), (kind, name)


@pytest.mark.parametrize("most_files", [8, 2])
@pytest.mark.slow
def test_pytorchs_own_reader_puts_them_together(saved: Mapping[int, Path], most_files: int) -> None:
    expected = {f"{kind}/{n}": t for number, kind in enumerate(KINDS) for n, t in file_ranks.whole(number).items()}
    read = {key: torch.empty_like(tensor) for key, tensor in expected.items()}
    reader = dcp.HuggingFaceStorageReader(str(saved[most_files] / "tensors"))
    dcp.load(read, storage_reader=reader, no_dist=True)
    assert all(torch.equal(read[key], tensor) for key, tensor in expected.items())


@pytest.mark.slow
def test_a_name_is_once_in_a_file(saved: Mapping[int, Path]) -> None:
    with safe_open(saved[2] / "tensors" / "shard-00001-of-00002.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(
            f"{kind}/{name}" for kind in KINDS for name in ("matrix", "vector", "large")
        )


def rows_of(cuts: list[int], num_rows: int, width: int) -> list[dict[str, Block]]:
    """Rows of one matrix, cut between ranks."""
    edges = [0, *sorted(cuts), num_rows]
    spans = zip(edges[:-1], edges[1:], strict=True)
    return [{"m": ((num_rows, width), (a, 0), (b - a, width))} if a < b else {} for a, b in spans]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 25))
def test_all_ranks_rows_are_in_a_file_once(cuts: list[int], most_files: int) -> None:
    ranks = rows_of(cuts, 30, 2)
    files = share_files(ranks, [0] * len(ranks), most_files)
    assert [file is None for file in files] == [not blocks for blocks in ranks]
    different = {id(file): file for file in files if file is not None}.values()
    assert len(different) <= most_files
    position = 0
    for file in different:
        (block,) = file.blocks
        assert block.offsets[0] == position and file.writer == file.ranks[0] == block.holders[0][0]
        assert [count for _, count in block.holders] == [2 * ranks[rank]["m"][2][0] for rank, _ in block.holders]
        assert sum(count for _, count in block.holders) == 2 * block.sizes[0]
        position += block.sizes[0]
    assert position == 30


def test_ranks_whose_rows_do_not_follow_on_each_other_do_not_share() -> None:
    """It may be more files then, but each can be read."""
    ranks = rows_of([10, 20], 30, 2)
    swapped = share_files([ranks[0], ranks[2], ranks[1]], [0, 0, 0], 1)
    assert [file.ranks if file else () for file in swapped] == [(0,), (1,), (2,)]
    columns: list[dict[str, Block]] = [{"m": ((4, 4), (0, c), (4, 2))} for c in (0, 2)]
    assert len({file.name for file in share_files(columns, [0, 0], 1) if file}) == 2
    scalars: list[dict[str, Block]] = [{"s": ((), (), ())}, {"s": ((), (), ())}]
    assert len({file.name for file in share_files(scalars, [0, 0], 1) if file}) == 2


def layout_of(num_ranks: int, tensor: int, pipeline: int) -> tuple[list[dict[str, Block]], list[int]]:
    """What each rank of a layout has of a model of 240 matrices under ZeRO 1, and its series."""
    data, rows, width = num_ranks // (tensor * pipeline), 2048, 8
    total = 240 // pipeline * rows
    blocks: list[dict[str, Block]] = []
    for rank in range(num_ranks):
        stage, place = divmod(rank // tensor, data)
        begin, end = total * place // data, total * (place + 1) // data
        blocks.append({})
        for number in range(begin // rows, -(-end // rows)):
            first, last = max(begin - number * rows, 0), min(end - number * rows, rows)
            if first < last:
                columns = rank % tensor * width
                key = f"{stage}.{number}"
                blocks[-1][key] = ((rows, width * tensor), (first, columns), (last - first, width))
    return blocks, [rank // tensor // data * tensor + rank % tensor for rank in range(num_ranks)]


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (4, 2), (8, 1)])
def test_files_grow_as_ranks_do_up_to_the_most_and_no_further(
    tensor: int, pipeline: int, growth_exponent: Callable[[Mapping[int, float]], float]
) -> None:
    """So do the descriptions of slices that rank 0 goes through: linear in ranks and tensors."""
    counts: dict[int, float] = {}
    descriptions: dict[int, float] = {}
    for num_ranks in (64, 1024, 4096, 8192, 12288):
        blocks, series = layout_of(num_ranks, tensor, pipeline)
        files = {id(file): file for file in share_files(blocks, series, 4096) if file is not None}
        counts[num_ranks] = len(files)
        descriptions[num_ranks] = sum(len(file.blocks) for file in files.values())
        assert all(has_what_its_holders_have(file) for file in files.values())
    assert [counts[n] for n in (64, 1024, 4096)] == [64, 1024, 4096]
    assert max(counts.values()) == 4096
    assert growth_exponent(descriptions) < 1, descriptions


def has_what_its_holders_have(file: SharedFile) -> bool:
    """Whether each block has the elements that its holders have."""
    return all(sum(n for _, n in b.holders) == torch.Size(b.sizes).numel() and b.holders for b in file.blocks)
