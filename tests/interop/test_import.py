"""Checkpoint files of the SmolTolk authors: read as what their model computes, or refused by name."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import FILES, read
from published_twin import Sizes, Twin
from small_backbone import write_config
from torch import Tensor

from tolktrain import cli
from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.errors import UserError
from tolktrain.interop.imports.published_file import PublishedFile
from tolktrain.interop.published import trace
from tolktrain.interop.weights import load_weights
from tolktrain.model.published_mask import published_adapter_mask
from tolktrain.vocabulary import Vocabulary

VARIANTS = {
    "everything": Sizes(inputs=2, outputs=2),
    "static": Sizes(dynamic=False, residual=False),
    "dynamic": Sizes(static=False, inputs=0),
    "early-fusion": Sizes(static=False, dynamic=False, residual=False, inputs=0, outputs=0),
    "untied": Sizes(tied=False, outputs=0),
}


def mixed(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Sequences of text and speech in turn; the second begins with speech, where the two masks differ."""
    generator = torch.Generator().manual_seed(1)
    speech = torch.zeros(3, 30, dtype=torch.bool)
    speech[0, 4:12] = speech[0, 20:] = speech[1, :9] = speech[1, 15:22] = speech[2] = True
    text = torch.randint(0, sizes.text + 3, speech.shape, generator=generator)
    units = torch.randint(0, sizes.speech, speech.shape, generator=generator)
    return torch.where(speech, units, text), speech


def imported_logits(folder: Path, tokens: Tensor, speech: Tensor) -> tuple[Tensor, Tensor]:
    inputs = {"input": tokens, "speech_in": speech, "speech_pred": torch.ones_like(speech)}
    inputs["text_pred"] = torch.ones_like(speech)
    with torch.no_grad():
        found = trace(load_weights(folder), {**inputs, "target": torch.zeros_like(tokens)})
    return found["text_logits"], found["speech_logits"][:, 0]


def import_file(file: Path, into: Path, twin: Twin, *options: str) -> int:
    write_config(file.parent / "backbone", **twin.backbone_config())
    return cli.main(["import", str(file), str(into), "--backbone", str(file.parent / "backbone"), *options])


@pytest.mark.parametrize("name", FILES)
def test_the_twin_computes_the_published_numbers(name: str) -> None:
    """In all sequences that begin with text or are speech only: elsewhere the earlier code pairs boundaries one off."""
    kinds, meta = read(name)
    sizes = Sizes(
        *(int(meta[key]) for key in ("hidden", "layers", "heads", "kv_heads", "ffn", "text_vocab", "speech_vocab")),
        theta=float(meta["rope_theta"]), inputs=int(meta["in_layers"]), outputs=int(meta["out_layers"]),
        static=meta["static_pool"] == "true", dynamic=meta["dynamic_pool"] == "true",
        residual=meta["residual"] == "true",
    )  # fmt: skip
    twin = Twin(sizes)
    _, unexpected = twin.load_state_dict(kinds["weight"], strict=False)
    assert not unexpected
    speech = kinds["input"]["speech_in"].bool()
    with torch.no_grad():
        text_logits, speech_logits = twin(kinds["input"]["input"][:, 0], speech)
    rows = speech.all(dim=1) | ~speech[:, 0] if sizes.inputs else torch.ones(len(speech), dtype=torch.bool)
    compared = [rows.sum()]
    if "text_logits" in kinds["output"]:
        torch.testing.assert_close(text_logits[rows], kinds["output"]["text_logits"][rows], rtol=0, atol=1e-5)
    if "speech_logits" in kinds["output"]:
        wanted = kinds["output"]["speech_logits"][rows, 0]
        torch.testing.assert_close(speech_logits[rows], wanted, rtol=0, atol=1e-5)
    assert compared[0] > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_is_read_as_what_the_released_code_computes(name: str, tmp_path: Path) -> None:
    """Also with the prefix of a compiled model, optimizer states, and mixed data types."""
    twin = Twin(VARIANTS[name])
    for key, tensor in twin.state_dict().items():
        if key.startswith("context_model"):
            tensor.copy_(tensor.bfloat16())  # so that the file can have them in bf16
    rounded = {key: t.bfloat16() for key, t in twin.state_dict().items() if key.startswith("context_model")}
    more = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "iter_num": 4321, "best_val_loss": 2.0}
    file = twin.save(tmp_path / "ckpt_best.pt", "_orig_mod.", {**more, "config": {"compile": True}}, rounded)
    assert import_file(file, tmp_path / "weights", twin) == 0
    tokens, speech = mixed(twin.sizes)
    with torch.no_grad():
        wanted = twin(tokens, speech)
        other = twin(tokens, speech, theta=100_000.0)
    for found, logits in zip(imported_logits(tmp_path / "weights", tokens, speech), wanted, strict=True):
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
    assert not torch.allclose(other[0], wanted[0], atol=1e-3)  # otherwise the base would not matter here
    description = json.loads((tmp_path / "weights" / "architecture.json").read_text())
    assert description["source"]["step"] == 4321 and description["sequence_length"] == 192
    assert description["source"]["imported"]["file"] == "ckpt_best.pt"
    assert sorted(os.listdir(tmp_path)) == ["backbone", "ckpt_best.pt", "weights"]


def test_the_other_settings_can_be_chosen(tmp_path: Path) -> None:
    twin = Twin(Sizes())
    file = twin.save(tmp_path / "model_ckpt.pt")
    options = ("--rope-theta", "100000", "--adapter-attention", "published", "--dtype", "bf16")
    assert import_file(file, tmp_path / "weights", twin, *options) == 0
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.bfloat16())
        tokens, speech = mixed(twin.sizes)
        mask = published_adapter_mask(speech)[:, 0]
        wanted = twin(tokens, speech, mask, 100_000.0)
        assert not torch.allclose(wanted[1][1], twin(tokens, speech, None, 100_000.0)[1][1], atol=1e-3)
    for found, logits in zip(imported_logits(tmp_path / "weights", tokens, speech), wanted, strict=True):
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_losses_of_both_bases_and_both_masks_are_printed(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each as the twin computes it; the lowest is named if it is not the chosen one."""
    sample = repository / "data" / "sample"
    twin = Twin(Sizes(text=1024, speech=502))
    with torch.no_grad():
        twin.txt_embed.weight *= 0.2
    data, name = DatasetConfig(path=str(sample / "heldout_stories")), str(sample / "heldout_stories")
    vocabulary = Vocabulary(1024, open_records(data).info.text.eos_id, 500)  # type: ignore[union-attr]

    def loss(strategy: Any, theta: float, published: bool) -> float:
        (batch,) = validation_batches(
            data, strategy, 4, vocabulary=vocabulary, sequence_length=192, interleaving=InterleavingConfig(),
            micro_batch_size=4,
        )  # fmt: skip
        speech = batch.speech_in.bool()
        mask = published_adapter_mask(speech)[:, 0] if published else None
        with torch.no_grad():
            logits = twin(batch.tokens[:, 0].long(), speech, mask, theta)
        nll = [
            torch.nn.functional.cross_entropy(part[scored], batch.targets[:, 0][scored].long(), reduction="sum")
            for part, scored in zip(logits, (batch.text_pred.bool(), batch.speech_pred.bool()), strict=True)
        ]
        return float(sum(nll)) / int((batch.text_pred | batch.speech_pred).sum())

    file = twin.save(tmp_path / "model_ckpt.pt")
    options = ("--data", name, "--sequences", "4", "--text-tokenizer", str(sample / "text_tokenizer"))
    assert import_file(file, tmp_path / "weights", twin, *options) == 0
    printed = capsys.readouterr().out
    means = {}
    for theta, mask in ((10000, "runs"), (10000, "published"), (100000, "runs"), (100000, "published")):
        line = next(line for line in printed.splitlines() if line.startswith(f"  {theta}, {mask}:"))
        assert ("(chosen)" in line) == ((theta, mask) == (10000, "runs"))
        shown = {strategy: float(value) for strategy, value in re.findall(r"(\w+) (\d+\.\d+)", line)}
        assert {"text", "speech", "interleaved", "recognition"} <= set(shown)
        for strategy, value in shown.items():
            assert value == pytest.approx(loss(strategy, theta, mask == "published"), abs=2e-4), (line, strategy)
        means[theta, mask] = np.mean(list(shown.values()))
    best = min(means, key=means.__getitem__)
    named = f"--rope-theta {best[0]} --adapter-attention {best[1]}" in printed
    assert named == (means[10000, "runs"] - means[best] > 0.005)
    assert (tmp_path / "weights" / "tokenizer.json").is_file()


def test_data_of_another_vocabulary(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = repository / "data" / "sample"
    for sizes, message in {
        Sizes(speech=502): "has text ids of a vocabulary of 1024, beyond the model's 31",
        Sizes(text=1024): "has 500 units and 1 codebooks, the model 9 and 1",
    }.items():
        file = Twin(sizes).save(tmp_path / "model_ckpt.pt")
        options = ("--data", str(sample / "heldout_stories"))
        assert import_file(file, tmp_path / "weights", Twin(sizes), *options) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "weights").exists()
    speech = ("--speech-tokenizer", str(sample / "speech_tokenizer"))
    text = ("--text-tokenizer", str(sample / "text_tokenizer"))
    for options, message in ((speech, "500 units and 1 codebooks, the model 9"), (text, "1024 ids, more than")):
        file = Twin(Sizes()).save(tmp_path / "model_ckpt.pt")
        assert import_file(file, tmp_path / "weights", Twin(Sizes()), *options) == 2
        assert message in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path)) == ["backbone", "model_ckpt.pt"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hidden layer in the selector": ({"selwa_linear": False}, "selwa_linear=False, a variant that this model"),
    "narrow selector": ({"selwa_downproj": True}, "selwa_downproj=True"),
    "selector of a layer": ({"layer_wa_audio": False, "selwa_in_layer": 1}, "selwa_in_layer=1"),
    "codebooks": ({"n_codebooks": 4}, "n_codebooks=4"),
    "no speech": ({"audio_vocabsize": None}, "audio_vocabsize=None; expected a model of both text and speech"),
    "another vocabulary": ({"txt_vocabsize": 40}, "txt_vocabsize=40, expected 34 .*HuggingFaceTB/SmolLM-135M"),
    "another switch token": ({"swt_token": 5}, "swt_token=5, expected 33"),
    "a layer more": ({"n_audio_out_layers": 2}, "lacks output_adapter.layers.1.input_layernorm.weight and 8 more"),
    "a layer less": ({"n_audio_in_layers": 0}, "has no place for input_adapter.layers.0"),
    "a tensor": ({"n_codebooks": torch.ones(2)}, "'n_codebooks' of 'model_args' is a tensor, expected a plain value"),
    "no number": ({"n_audio_in_layers": "two"}, "n_audio_in_layers='two'; expected a whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_switches_that_the_model_lacks_are_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = REFUSED[case]
    twin = Twin(Sizes())
    file = twin.save(tmp_path / "model_ckpt.pt", **changes)
    assert import_file(file, tmp_path / "weights", twin) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(os.listdir(tmp_path)) == ["backbone", "model_ckpt.pt"]


TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "untied speech head": ({"audio_unembed.0.weight": torch.ones(11, 16)}, "tie_audio_embeddings=True"),
    "selector of two layers": ({"layer_selector.0.weight": torch.ones(16, 16)}, "selwa_linear=True"),
    "a foreign name": ({"wte.weight": torch.ones(3)}, "wte.weight is no known name"),
    "other shape": ({"context_model.norm.weight": torch.ones(8)}, r"norm.weight has shape \[8\], .* ask for \[16\]"),
    "text head of other rows": ({"txt_unembed.weight": torch.ones(30, 16)}, r"shape \[30, 16\], expected 31 rows"),
    "quantized": ({"context_model.norm.weight": torch.ones(16).to(torch.int8)}, "has the type int8; quantized"),
    "not finite": ({"context_model.norm.weight": torch.full((16,), torch.nan)}, r"norm.weight holds NaN \(16 of 16"),
    "another base": (
        {"context_model.rotary_emb.inv_freq": 100_000.0 ** (-torch.arange(2) / 2)},
        "computed with the rotary base 100000, not 10000; give --rope-theta 1e\\+05",
    ),
    "no frequencies": (
        {"context_model.rotary_emb.inv_freq": torch.tensor([1.0, 0.0])},
        "rotary_emb.inv_freq holds no rotary frequencies",
    ),
    "frequencies of no float": (
        {"context_model.rotary_emb.inv_freq": torch.tensor([1.0, 1e-150], dtype=torch.float64)},
        "computed with the rotary base 1e\\+300, not 10000",
    ),
    "sparse": ({"context_model.norm.weight": torch.ones(16).to_sparse()}, "norm.weight' of 'model' is no dense tensor"),
    "without values": ({"txt_embed.weight": torch.ones(34, 16, device="meta")}, "txt_embed.weight' of 'model' is no"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = TENSORS[case]
    twin = Twin(Sizes())
    file = twin.save(tmp_path / "model_ckpt.pt", tensors=changes)
    assert import_file(file, tmp_path / "weights", twin) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(os.listdir(tmp_path)) == ["backbone", "model_ckpt.pt"]


class Trap:
    """Runs a command if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_foreign_objects_are_refused_without_running_them(tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / "model_ckpt.pt"
    Twin(Sizes()).save(path, more={"config": Trap(trap)})
    with pytest.raises(UserError, match=r"holds an object of (posix|os)\.system, which is not loaded"):
        PublishedFile.read(path)
    path.write_bytes(pickle.dumps(Trap(trap)))  # no archive, an old pickle
    with pytest.raises(UserError, match=r"model_ckpt\.pt"):
        PublishedFile.read(path)
    assert not trap.exists()
    torch.load(Twin(Sizes()).save(path, more={"config": Trap(trap)}), weights_only=False)
    assert trap.exists()  # otherwise the trap would prove nothing


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = Twin(Sizes()).save(tmp_path / "model_ckpt.pt")
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"model_ckpt\.pt .*download it again"):
            PublishedFile.read(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="pointer of Git LFS"):
        PublishedFile.read(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="lacks 'model' and 'model_args'"):
        PublishedFile.read(path)
    with pytest.raises(UserError, match=r"gone\.pt cannot be read"):
        PublishedFile.read(tmp_path / "gone.pt")


def test_a_file_without_its_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the backbone that the file names, and options for files are refused for folders."""
    file = Twin(Sizes()).save(tmp_path / "model_ckpt.pt")
    assert cli.main(["import", str(file), str(tmp_path / "weights")]) == 2
    assert "trained from 'HuggingFaceTB/SmolLM-135M'" in capsys.readouterr().err
    assert cli.main(["import", str(tmp_path), str(tmp_path / "weights"), "--rope-theta", "5"]) == 2
    assert "belong to a file of the SmolTolk authors" in capsys.readouterr().err
    assert cli.main(["import", str(tmp_path), str(tmp_path / "weights")]) == 2
    assert f"import the file itself: {file}" in capsys.readouterr().err
    write_config(tmp_path)
    assert cli.main(["import", str(tmp_path), str(tmp_path / "weights")]) == 2
    assert "a text model begins a run as model.backbone" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model_ckpt.pt"]


@pytest.mark.parametrize("name", VARIANTS)
def test_published_import_published(name: str, tmp_path: Path) -> None:
    """The exported file has the authors' names and loads into the twin; imported and exported again, equal bytes."""
    twin = Twin(VARIANTS[name])
    if not twin.sizes.tied:  # rows of special ids are never predicted, and not kept
        with torch.no_grad():
            twin.txt_unembed.weight[-3:] = 0
    first = twin.save(tmp_path / "model_ckpt.pt")
    assert import_file(first, tmp_path / "one", twin) == 0
    assert cli.main(["export", str(tmp_path / "one"), str(tmp_path / "file"), "--format", "published"]) == 0
    content = torch.load(tmp_path / "file" / "model_ckpt.pt", weights_only=True)
    wanted = twin.state_dict()
    assert content["model"].keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in content["model"].items())
    again = Twin(twin.sizes, seed=9)
    again.load_state_dict(content["model"])
    arguments = {key: content["model_args"][key] for key in twin.arguments()}
    given = twin.arguments(backbone=arguments["backbone"], torch_dtype=torch.float32)
    assert arguments == given and Path(arguments["backbone"]) == tmp_path / "file" / "backbone"
    path = ["import", str(tmp_path / "file" / "model_ckpt.pt"), str(tmp_path / "two")]
    assert cli.main([*path, "--backbone", arguments["backbone"]]) == 0
    one, two = (next((tmp_path / part).glob("*.safetensors")).read_bytes() for part in ("one", "two"))
    assert one == two
    descriptions = [json.loads((tmp_path / part / "architecture.json").read_text()) for part in ("one", "two")]
    assert descriptions[0]["architecture"] == descriptions[1]["architecture"]
    assert cli.main(["export", str(tmp_path / "one"), str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "imported from format published" in card
    assert "step" not in card and "None" not in card  # neither is in this file
