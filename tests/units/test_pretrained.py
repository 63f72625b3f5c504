"""Finding, naming and loading pretrained models."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_models import save_hubert

from tolktrain.errors import UserError
from tolktrain.units.pretrained import (
    PretrainedModel,
    checked_device,
    load_model,
    model_digest,
    model_folder,
    preprocessor_normalizes,
)

pytest.importorskip("transformers")
pytestmark = pytest.mark.transformers
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that the test may damage."""
    return save_hubert(tmp_path / "model", stable=False)


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_digest_follows_weights_and_configuration(model: Path) -> None:
    first = model_digest(model)
    _change(model / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    (model / "README.md").write_text("new")
    assert model_digest(model) == first
    _change(model / "config.json", layer_norm_eps=0.1)
    changed = model_digest(model)
    assert changed != first
    tensors = load_file(model / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    assert model_digest(model) != changed


def test_weights_in_several_files(model: Path, tmp_path: Path) -> None:
    from transformers import HubertModel

    loaded = HubertModel.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1
    digest = model_digest(tmp_path / "parts")
    again = load_model("HubertModel", "hubert", tmp_path / "parts", "cpu")
    assert all((value == again.state_dict()[name]).all() for name, value in loaded.state_dict().items())
    content = bytearray(parts[-1].read_bytes())
    content[-1] ^= 1
    parts[-1].write_bytes(content)
    assert model_digest(tmp_path / "parts") != digest
    parts[-1].unlink()
    with pytest.raises(UserError, match=f"{parts[-1].name} cannot be read"):
        model_digest(tmp_path / "parts")


def test_weights_elsewhere_are_not_loaded(model: Path, tmp_path: Path) -> None:
    elsewhere = (model / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(elsewhere), str(elsewhere))}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    for read in (model_digest, lambda folder: load_model("HubertModel", "hubert", folder, "cpu")):
        with pytest.raises(UserError, match=r"index\.json names the file .* absolute path"):
            read(model)


def test_pickled_weights(model: Path) -> None:
    import torch

    before = load_model("HubertModel", "hubert", model, "cpu").state_dict()
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    model_digest(model)
    after = load_model("HubertModel", "hubert", model, "cpu").state_dict()
    assert all((value == after[name]).all() for name, value in before.items())
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no weights; expected one of model.safetensors"):
        model_digest(model)


class _Program:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_programs_in_pickled_weights_are_not_run(model: Path, tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "mark"
    (model / WEIGHTS).unlink()
    torch.save({"x": _Program(mark)}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as HubertModel"):
        load_model("HubertModel", "hubert", model, "cpu")
    assert not mark.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # otherwise the file was harmless, and this proves nothing


def test_programs_next_to_weights_are_not_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "program.Config", "AutoModel": "program.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "custom_generate").mkdir()
    for name in ("program.py", "custom_generate/generate.py"):
        (model / name).write_text(f"open({str(mark)!r}, 'w')")
    load_model("HubertModel", "hubert", model, "cpu")
    assert not mark.exists()


def test_missing_weights_are_not_drawn_at_random(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    name = "encoder.layers.1.attention.k_proj.weight"
    del tensors[name]
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights of HubertModel .*{name}.*random"):
        load_model("HubertModel", "hubert", model, "cpu")


def test_weights_of_another_shape_are_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    name = "encoder.layers.1.attention.k_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights of HubertModel .*{name} of another shape"):
        load_model("HubertModel", "hubert", model, "cpu")


def test_older_names_of_weights(model: Path) -> None:
    """The published models are older than the names that torch and transformers give to normalized weights today."""
    before = load_model("HubertModel", "hubert", model, "cpu").state_dict()
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = load_file(model / WEIGHTS)
    for name in [name for name in tensors if "parametrizations" in name]:
        stem, _, kind = name.partition("parametrizations.weight.")
        tensors[f"{stem}{older[f'parametrizations.weight.{kind}']}"] = tensors.pop(name)
    assert sum(name.endswith(("weight_g", "weight_v")) for name in tensors) == 2
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    after = load_model("HubertModel", "hubert", model, "cpu").state_dict()
    assert all((value == after[name]).all() for name, value in before.items())


def test_loading_is_silent(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Progress bars of every process would fill the log of a preparation; what was set is restored."""
    from transformers.utils import logging

    load_model("HubertModel", "hubert", model, "cpu")
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_damaged_weights(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be loaded as HubertModel"):
        load_model("HubertModel", "hubert", model, "cpu")


def test_half_precision_is_widened(model: Path) -> None:
    import torch

    save_file({name: value.half() for name, value in load_file(model / WEIGHTS).items()}, model / WEIGHTS)
    _change(model / "config.json", torch_dtype="float16", dtype="float16")
    assert {p.dtype for p in load_model("HubertModel", "hubert", model, "cpu").parameters()} == {torch.float32}


def test_another_kind_of_model(model: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json describes a model of the type 'hubert'; expected 'mimi'"):
        load_model("MimiModel", "mimi", model, "cpu")
    (model / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
        load_model("HubertModel", "hubert", model, "cpu")


def test_without_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'tolktrain\[audio\]'"):
        load_model("HubertModel", "hubert", model, "cpu")


def test_place_of_a_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = PretrainedModel.of("model", None, tmp_path / "tokenizer")
    assert outside.path == str(model.resolve())
    inside = PretrainedModel.of("model", None, tmp_path)
    assert inside.path == "./model" and inside.sha256 == outside.sha256
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copytree(model, moved / "model")
    monkeypatch.chdir("/")
    assert inside.folder(moved).samefile(moved / "model")
    shutil.rmtree(moved / "model")
    with pytest.raises(UserError, match="is no folder"):
        inside.folder(moved)


def test_another_revision_under_the_same_name(model: Path, tmp_path: Path) -> None:
    named = PretrainedModel.of(str(model), None, tmp_path / "tokenizer")
    shutil.rmtree(model)
    save_hubert(model, stable=False, seed=1)
    with pytest.raises(UserError, match=r"not those that the speech tokenizer was made with.*name the right revision"):
        named.folder(tmp_path / "tokenizer")


def test_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, [pattern for pattern in allow_patterns if "config" not in pattern][0]))
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert model_folder("some/model", "abc") == model
    assert asked == [("some/model", "abc", "*.safetensors")]
    (model / WEIGHTS).rename(model / "elsewhere")
    assert model_folder("some/model") == model
    assert asked[1:] == [("some/model", None, "*.safetensors"), ("some/model", None, "pytorch_model*.bin")]


def test_hub_id_in_the_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client of the hub lays a download out, read by the client itself without a network."""
    from huggingface_hub import constants

    commit = "c0ffee" + 34 * "0"
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(model, repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_folder("some/model") == model_folder("some/model", commit) == repository / "snapshots" / commit
    with pytest.raises(UserError, match="at revision v2 is no folder here and could not be fetched"):
        model_folder("some/model", "v2")


def test_hub_out_of_reach() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing at revision abc is no folder here and could not be fetched"):
        model_folder("nobody/nothing", "abc")
    with pytest.raises(UserError, match="nowhere is no folder; give"):
        model_folder("./nowhere")


def test_normalization_must_be_known(model: Path) -> None:
    assert preprocessor_normalizes(model) is False
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="do_normalize.*normalize=True or normalize=False"):
        preprocessor_normalizes(model)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checked_device("auto") == "cpu"
    with pytest.raises(UserError, match="sees no GPU"):
        checked_device("cuda")
    with pytest.raises(UserError, match="'tpu' is not known"):
        checked_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checked_device("auto") == "cuda"
