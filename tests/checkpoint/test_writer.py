"""Files of slices: plain safetensors that other libraries read, and any part of which is found again."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tolktrain.checkpoint.manifest import DamagedCheckpointError, digest_files
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import PARAMETERS, Slice, Snapshot
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.checkpoint.writer import check_tiling, write_safetensors

Save = Callable[[CheckpointStore, int], Path]
MakeSnapshot = Callable[[int], Snapshot]
Blocks = dict[str, list[Slice]]  # of each rank


def test_the_safetensors_library_reads_it(store: CheckpointStore, save: Save, make_snapshot: MakeSnapshot) -> None:
    written = {f"{kind}/{name}": block.tensor for kind, name, block in make_snapshot(1).items()}
    file = save(store, 1) / "tensors" / "shard-00001-of-00001.safetensors"
    read = load_file(file)
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
    with safe_open(file, framework="pt") as opened:
        noted = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
    assert noted["parameters/layer.weight"] == {"saved_offsets": [0, 0]}


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    tensors = {"large": torch.randn(3_000_000), "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    places = {name: ((0,) * tensor.dim(), tuple(tensor.shape)) for name, tensor in tensors.items()}
    digest = write_safetensors(tmp_path / "a", places, (tensor.flatten() for tensor in tensors.values()))
    assert digest == digest_files(tmp_path, ["a"])["a"]
    read = load_file(tmp_path / "a")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def write_as(folder: Path, ranks: list[Mapping[str, Slice]]) -> None:
    """What several ranks once wrote, a folder for each kind, and the list of it."""
    (folder / PARAMETERS).mkdir(parents=True)
    tensors: dict[str, dict[str, object]] = {}
    for rank, blocks in enumerate(ranks):
        file = f"{PARAMETERS}/shard-{rank}.safetensors"
        places = {name: (block.offsets, block.sizes) for name, block in blocks.items()}
        write_safetensors(folder / file, places, (block.tensor.flatten() for block in blocks.values()))
        for name, block in blocks.items():
            entry = tensors.setdefault(name, {"shape": block.shape, "slices": []})
            assert isinstance(entry["slices"], list)
            entry["slices"].append({"file": file, "offsets": block.offsets, "sizes": block.sizes})
    (folder / "tensors.json").write_text(json.dumps({PARAMETERS: tensors}))


def cut(tensor: torch.Tensor, rows: list[int], columns: list[int]) -> list[Slice]:
    """A matrix as a grid of slices, cut before the given rows and columns."""
    spans = [list(itertools.pairwise([0, *cuts, n])) for cuts, n in zip((rows, columns), tensor.shape, strict=True)]
    return [
        Slice(tensor[a:b, c:d].contiguous(), (a, c), tuple(tensor.shape))
        for (a, b), (c, d) in itertools.product(*spans)
    ]


def test_any_block_is_read_whoever_wrote_it(tmp_path: Path) -> None:
    matrix, vector = torch.randn(11, 7), torch.randn(9)
    grid = cut(matrix, [3, 4, 8], [2, 5])
    ranks: list[Mapping[str, Slice]] = [{"matrix": block} for block in grid]
    ranks += [{"vector": Slice(vector[:4].clone(), (0,), (9,))}, {"vector": Slice(vector[4:].clone(), (4,), (9,))}]
    write_as(tmp_path, ranks)
    with CheckpointReader(tmp_path) as reader:
        assert reader.shapes(PARAMETERS) == {"matrix": (11, 7), "vector": (9,)}
        for (a, b), (c, d) in itertools.product(
            itertools.combinations(range(12), 2), itertools.combinations(range(8), 2)
        ):
            assert torch.equal(reader.read(PARAMETERS, "matrix", (a, c), (b - a, d - c)), matrix[a:b, c:d])
        assert torch.equal(reader.read(PARAMETERS, "vector", (2,), (5,)), vector[2:7])


def test_pytorchs_own_reader_puts_slices_together(tmp_path: Path) -> None:
    matrix = torch.randn(11, 7)
    write_as(tmp_path, [{"matrix": block} for block in cut(matrix, [5], [2])])
    read = {"matrix": torch.empty(11, 7)}
    dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / PARAMETERS)), no_dist=True)
    assert torch.equal(read["matrix"], matrix)


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    matrix = torch.randn(6, 2)
    write_as(tmp_path, [{"matrix": block} for block in cut(matrix, [2, 4], [])[::2]])
    with CheckpointReader(tmp_path) as reader:
        assert torch.equal(reader.read(PARAMETERS, "matrix", (4, 0), (2, 2)), matrix[4:])
        with pytest.raises(DamagedCheckpointError, match=r"tensors.json: parameters of matrix are not all there"):
            reader.read_whole(PARAMETERS, "matrix")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_as(tmp_path, [{"matrix": Slice.whole(torch.randn(6, 2))}])
    (tmp_path / PARAMETERS / "shard-0.safetensors").unlink()
    with CheckpointReader(tmp_path) as reader, pytest.raises(DamagedCheckpointError, match="shard-0.safetensors"):
        reader.read_whole(PARAMETERS, "matrix")
    with CheckpointReader(tmp_path / "nowhere") as reader, pytest.raises(DamagedCheckpointError, match="tensors.json"):
        reader.shapes(PARAMETERS)


@given(st.data())
def test_only_exact_tilings_are_taken(data: st.DataObject) -> None:
    """Compared with counting every element."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 4)))
    rows = data.draw(st.lists(st.integers(0, shape[0]), max_size=3).map(sorted))
    columns = data.draw(st.sampled_from([[], [shape[1] // 2]]))
    blocks = [(block.offsets, block.sizes) for block in cut(torch.zeros(shape), rows, columns)]
    blocks = [block for block in blocks if math.prod(block[1])]
    change = data.draw(st.sampled_from(["none", "drop", "repeat", "grow", "shift"]))
    number = data.draw(st.integers(0, len(blocks) - 1))
    offsets, sizes = blocks[number]
    if change == "drop":
        del blocks[number]
    elif change == "repeat":
        blocks.append(blocks[number])
    elif change == "grow":
        blocks[number] = (offsets, (sizes[0] + 1, sizes[1]))
    elif change == "shift":
        blocks[number] = ((offsets[0] + 1, offsets[1]), sizes)
    covered = torch.zeros(shape[0] + 9, shape[1] + 9, dtype=torch.int64)
    for (row, column), (height, width) in blocks:
        covered[row : row + height, column : column + width] += 1
    inside = covered[: shape[0], : shape[1]]
    if bool((inside == 1).all()) and int(covered.sum()) == math.prod(shape):
        check_tiling("matrix", shape, blocks)
    else:
        with pytest.raises(ValueError, match="matrix: the slices of all ranks"):
            check_tiling("matrix", shape, blocks)
