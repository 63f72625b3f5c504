"""Weights without optimizer: written by `export_weights`, read by anybody."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_disk import MakeDisk

from tolktrain import cli
from tolktrain.checkpoint.manifest import digest_files, write_manifest
from tolktrain.errors import UserError
from tolktrain.interop.tensor_writer import DTYPES
from tolktrain.interop.weights import export_weights, load_weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk

ARCHITECTURE = Architecture(
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    ffn_hidden_size=48,
    text_vocab_size=61,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_text_embeddings=False,
    initializer_range=0.02,
    num_units=17,
    num_codebooks=1,
    input_adapter_layers=1,
    output_adapter_layers=1,
    layer_pooling="both",
    residual=True,
)


def write_checkpoint(run_dir: Path, step: int, model: SmolTolk) -> Path:
    """A checkpoint of two shards, of which one tensor is in both, written by hand."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    (folder / "parameters").mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in canonical_state(model).items()}
    index: dict[str, dict[str, Any]] = {}
    for shard in (0, 1):
        part = {name: tensors[name] for name in sorted(tensors)[shard::2]}
        cut = tensors["text_embedding.weight"]
        begin, end = (0, 7) if shard == 0 else (7, len(cut))
        part["text_embedding.weight"] = cut[begin:end].clone()
        save_file(part, folder / "parameters" / f"shard-{shard}.safetensors")
        for name, tensor in part.items():
            entry = index.setdefault(name, {"shape": list(tensors[name].shape), "slices": []})
            offsets = [begin if name == "text_embedding.weight" else 0, *[0] * (tensor.dim() - 1)]
            file = f"parameters/shard-{shard}.safetensors"
            entry["slices"].append({"file": file, "offsets": offsets, "sizes": list(tensor.shape)})
    (folder / "tensors.json").write_text(json.dumps({"parameters": index}))
    (folder / "state.json").write_text(
        json.dumps({"step": step, "stage_name": "joint", "architecture": model.architecture.to_dict()})
    )
    files = ["parameters/shard-0.safetensors", "parameters/shard-1.safetensors", "state.json", "tensors.json"]
    write_manifest(folder, digest_files(folder, files))
    (run_dir / "config.yaml").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def model() -> SmolTolk:
    """A small model."""
    return SmolTolk(ARCHITECTURE, seed=5)


@pytest.fixture
def run_dir(tmp_path: Path, model: SmolTolk) -> Path:
    """A run whose latest checkpoint holds `model`, and an older one something else."""
    write_checkpoint(tmp_path / "run", 3, SmolTolk(ARCHITECTURE, seed=6))
    write_checkpoint(tmp_path / "run", 7, model)
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_exported_is_the_model(
    run_dir: Path, model: SmolTolk, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "new" / "weights"
    checkpoint = run_dir / "checkpoints" / "step-00000007"
    (run_dir / "config.yaml").unlink()
    assert cli.main(["export", str(checkpoint), str(into), "--dtype", dtype]) == 0
    assert f"step-00000007 in {into}" in capsys.readouterr().out
    assert sorted(os.listdir(into)) == [
        *("README.md", "architecture.json", "config.json", "generation_config.json"),
        *("model-00001-of-00001.safetensors", "model.safetensors.index.json", "modeling_smoltolk.py"),
    ]
    expected = {name: tensor.to(DTYPES[dtype]) for name, tensor in canonical_state(model).items()}
    plain = load_file(into / "model-00001-of-00001.safetensors")
    loaded = canonical_state(load_weights(into))
    assert plain.keys() == expected.keys() == loaded.keys()
    for name, tensor in expected.items():
        assert plain[name].dtype == tensor.dtype and torch.equal(plain[name], tensor)
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], tensor.float())
    index = json.loads((into / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in plain.values())


def test_files_have_a_largest_size(run_dir: Path, model: SmolTolk, tmp_path: Path) -> None:
    into = tmp_path / "weights"
    into.mkdir()  # an empty folder will do
    export_weights(run_dir, into, report=lambda _: None, file_bytes=9000)
    files = sorted(into.glob("*.safetensors"))
    assert len(files) > 3 and files[-1].name == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    index = json.loads((into / "model.safetensors.index.json").read_text())["weight_map"]
    together = {}
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 9000
        assert all(index[name] == file.name for name in tensors)
        together.update(tensors)
    state = canonical_state(model)
    assert together.keys() == index.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in canonical_state(load_weights(into)).items())


def test_a_step_can_be_named_and_is_verified_first(run_dir: Path, tmp_path: Path) -> None:
    export_weights(run_dir, tmp_path / "old", step=3, report=lambda _: None)
    assert json.loads((tmp_path / "old" / "architecture.json").read_text())["source"]["step"] == 3
    shard = run_dir / "checkpoints" / "step-00000007" / "parameters" / "shard-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="step-00000007/parameters/shard-1.safetensors"):
        export_weights(run_dir, tmp_path / "new", step=7, report=lambda _: None)
    assert not (tmp_path / "new").exists()
    assert export_weights(run_dir, tmp_path / "new", report=lambda _: None).name == "step-00000003"


def test_a_folder_with_something_in_it_is_refused(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        export_weights(run_dir, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="or the present one"):
        export_weights(run_dir, Path("."))
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_an_export_that_fails_leaves_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tolktrain.interop.tensor_writer.write_synced", fail)
    with pytest.raises(OSError, match="No space"):
        export_weights(run_dir, tmp_path / "weights", report=lambda _: None)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("architecture", "another architecture"),
        ("version", "reads format 1"),
        ("cut", "model-00001-of-00001.safetensors cannot be read"),
        ("index", "lacks backbone"),
        ("no index", "model.safetensors.index.json cannot be read"),
    ],
)
def test_what_cannot_be_loaded_is_named(run_dir: Path, tmp_path: Path, damage: str, message: str) -> None:
    into = tmp_path / "weights"
    export_weights(run_dir, into, report=lambda _: None)
    description = json.loads((into / "architecture.json").read_text())
    if damage == "architecture":
        description["architecture"]["ffn_hidden_size"] = 64
    elif damage == "version":
        description["format_version"] = 2
    elif damage == "cut":
        os.truncate(into / "model-00001-of-00001.safetensors", 5000)
    elif damage == "index":
        index = json.loads((into / "model.safetensors.index.json").read_text())
        del index["weight_map"]["backbone.norm.weight"]
        (into / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (into / "model.safetensors.index.json").unlink()
    (into / "architecture.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        load_weights(into)


@pytest.mark.parametrize("leaving_kib", [0, 8, 60])
def test_a_full_disk_leaves_nothing_of_an_export(run_dir: Path, make_disk: MakeDisk, leaving_kib: int) -> None:
    disk = make_disk(4 << 10)
    (disk.path / "mine").write_text("mine")
    disk.refuses(
        lambda: export_weights(run_dir, disk.path / "weights", report=lambda _: None, file_bytes=20_000),
        f"'{disk.path}/.tmp-weights-.*/(model-.*safetensors|.*json)'",
        leaving_kib,
    )
    load_weights(disk.path / "weights")
