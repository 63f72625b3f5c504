"""Exported models compute what tolktrain computes, with transformers alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "units"))  # for `small_models`

import exported_models
import numpy as np
import pytest
import small_models
import torch
from hifigan_twin import SEVERAL, make_twin, save_published
from safetensors.torch import load_file
from test_weights import ARCHITECTURE, write_checkpoint

from tolktrain import cli
from tolktrain.data.records import DatasetInfo
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import CachedDecoder
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.interop.export.hf import export_hf
from tolktrain.interop.export.source import ExportSource
from tolktrain.interop.huggingface import load_backbone
from tolktrain.interop.published import trace
from tolktrain.interop.weights import export_weights, load_weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.llama import RopeScaling
from tolktrain.model.parameter_layout import canonical_state, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.units.base import collapse, expand
from tolktrain.units.hubert import HubertTokenizer
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.mimi import MimiTokenizer
from tolktrain.units.vocoders.kind import Voice
from tolktrain.units.vocoders.load import open_vocoder
from tolktrain.units.vocoders.unit_hifigan import convert
from tolktrain.vocabulary import Vocabulary

pytestmark = pytest.mark.transformers

GREEDY = Sampling(temperature=0.0, top_k=1, seed=0)
DIRECTIONS = ("text > text", "text > speech", "speech > text", "speech > speech")
REFUSALS = ("one prompt at a time", "one prompt at a time", "without padding", "max_new_tokens is 0", "temperature 0.0")
WITH_NAME = "the little bird <|endoftext|>"  # of a special token, which is plain text
VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {"tie_text_embeddings": True, "input_adapter_layers": 2},
    "codebooks": {"num_codebooks": 3, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
    "early-fusion": {
        "input_adapter_layers": 0,
        "output_adapter_layers": 0,
        "layer_pooling": "none",
        "residual": False,
        "tie_text_embeddings": True,
    },
    "static": {"layer_pooling": "static", "input_adapter_layers": 0, "num_codebooks": 3, "special_tokens": ("<|a|>",)},
    "dynamic": {"layer_pooling": "dynamic", "residual": False, "output_adapter_layers": 0},
}


def _architecture(**changes: Any) -> Architecture:
    return Architecture(**{**ARCHITECTURE.to_dict(), "initializer_range": 0.2, **changes})


def _model(name: str) -> SmolTolk:
    """Random weights; layers add enough to what they read that the model does not repeat its last token."""
    model = SmolTolk(_architecture(**VARIANTS[name]), seed=4).eval()
    tensors = {key: tensor.clone() for key, tensor in canonical_state(model).items()}
    for key, tensor in tensors.items():
        if ".o_proj." in key or ".down_proj." in key:
            tensor *= 4
    copy_canonical(model, tensors)
    return model


def _inputs(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Two sequences of 40 positions with text and speech in turn, and prompts."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, architecture.num_codebooks, 40)
    speech = torch.zeros(2, 40, dtype=torch.bool)
    speech[0, 5:17] = speech[0, 30:] = speech[1, :21] = True
    units = torch.randint(0, architecture.speech_vocab_size, shape, generator=generator)
    words = torch.randint(0, architecture.text_table_size, shape, generator=generator)
    words[:, 1:] = 0
    return {
        "tokens": torch.where(speech.unsqueeze(1), units, words),
        "speech_mask": speech,
        "text": torch.randint(1, architecture.text_vocab_size, (9,), generator=generator),
        "units": torch.randint(0, architecture.num_units, (7, architecture.num_codebooks), generator=generator),
    }


def _expected(model: SmolTolk, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of tolktrain."""
    sizes, tokens, speech = model.architecture, inputs["tokens"], inputs["speech_mask"]
    targets, after = tokens[:, :, 1:], speech[:, 1:]
    predicted = {"speech_pred": after, "text_pred": ~after & (targets[:, 0] < sizes.text_vocab_size)}
    shorter = {"input": tokens[:, :, :-1], "target": targets, "speech_in": speech[:, :-1], **predicted}
    with torch.no_grad():
        found = trace(model, shorter)
        nll = model.token_nll(_batch(shorter))
    vocabulary = Vocabulary(sizes.text_vocab_size, 0, sizes.num_units, sizes.num_codebooks)
    text, units = inputs["text"].tolist(), inputs["units"].numpy()
    write, speak = CachedDecoder(model, "text", 100), CachedDecoder(model, "speech", 100)
    texts, speeches = TextLimits(20, 1), SpeechLimits(lambda units: 0.0, 1.0, 20, 1)
    contexts = {
        "text > text": Context.of_text(text, vocabulary),
        "speech > text": Context.of_speech(units, vocabulary, switch=True),
    }
    result: dict[str, Any] = {"logits": found["text_logits"], "speech_logits": found["speech_logits"]}
    result["log_likelihood"] = -nll.sum(dim=1)
    # The mean over the text that has a logit, from the logits of tolktrain.
    texts_after = predicted["text_pred"]
    logs = torch.log_softmax(found["text_logits"][texts_after].double(), dim=-1)
    result["loss"] = -logs.gather(-1, targets[:, 0][texts_after].unsqueeze(-1)).mean().float()
    for direction, context in contexts.items():
        result[direction] = sample_text(write, [context], vocabulary, GREEDY, texts)[0]
    before = [Context.of_text(text, vocabulary, switch=True)]
    result["text > speech"] = sample_speech(speak, [units[:0]], vocabulary, GREEDY, speeches, before)[0].tolist()
    result["speech > speech"] = sample_speech(speak, [units], vocabulary, GREEDY, speeches)[0].tolist()
    return result


def _batch(inputs: dict[str, torch.Tensor]) -> Any:
    from tolktrain.model.inputs import ModelInputs
    from tolktrain_kernels.scored_rows import index_scored
    from tolktrain_kernels.speech_adapter import pack_segments

    scored = index_scored(inputs["target"], inputs["speech_pred"], inputs["text_pred"])
    return ModelInputs(inputs["input"], inputs["speech_in"], pack_segments(inputs["speech_in"]), scored)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Exported models of all variants, and what tolktrain computes with them."""
    folder, expected = tmp_path_factory.mktemp("exported"), {}
    for name in VARIANTS:
        model = _model(name)
        checkpoint = write_checkpoint(folder / name / "run", 7, model)
        (folder / name / "run" / "config.yaml").unlink()
        assert cli.main(["export", str(checkpoint), str(folder / name / "model")]) == 0
        inputs = _inputs(model.architecture)
        torch.save(inputs, folder / name / "inputs.pt")
        expected[name] = _expected(model, inputs)
    return folder, expected


def _tokenizer_that_begins_texts(source: Path, folder: Path) -> Path:
    """A text tokenizer that adds an id before each text, unless it is asked not to, as those of Llama 3 do."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert tokenizer.encode("a").ids[0] == 0
    return folder


@pytest.fixture(scope="module")
def with_processors(exported: tuple[Path, dict[str, dict[str, Any]]], repository: Path) -> dict[str, dict[str, Any]]:
    """Exported models with each kind of speech tokenizer, next to the others, and what tolktrain computes."""
    folder, _ = exported
    sample = repository / "data" / "sample"
    kinds = {"logmel": folder / "units-logmel", "hubert": folder / "units-hubert", "mimi": folder / "units-mimi"}
    hubert = small_models.save_hubert(kinds["hubert"] / "model", False)
    HubertTokenizer.fit_from(
        kinds["hubert"], str(hubert), [small_models.tones(0, 3.0)], 1, 20, seed=0, hours=1.0, window_seconds=2.0,
        overlap_seconds=0.4,
    )  # fmt: skip
    shutil.copytree(sample / "speech_tokenizer", kinds["logmel"])
    convert(kinds["logmel"], *save_published(folder / "published", make_twin(4, **SEVERAL)), kinds["logmel"])
    mimi = small_models.save_mimi(kinds["mimi"] / "model")
    MimiTokenizer.create(kinds["mimi"], str(mimi), 3, window_seconds=2.0, overlap_seconds=0.8)
    expected = {}
    text = _tokenizer_that_begins_texts(sample / "text_tokenizer", folder / "text")
    for kind, tokenizer in kinds.items():
        speech, place = load_speech_tokenizer(tokenizer), folder / f"processor-{kind}"
        sizes = {"text_vocab_size": 1024, "num_units": speech.num_units, "num_codebooks": speech.num_codebooks}
        checkpoint = write_checkpoint(place / "run", 7, SmolTolk(_architecture(**sizes), seed=4))
        (place / "run" / "config.yaml").unlink()
        export_weights(checkpoint, place / "plain", report=lambda _: None)
        names = [str(place / "plain"), str(place / "weights")]
        options = ["--text-tokenizer", str(text), "--speech-tokenizer", str(tokenizer)]
        assert cli.main(["import", *names, *options]) == 0
        assert cli.main(["export", str(place / "weights"), str(place / "model")]) == 0
        waveform = small_models.tones(1, 5.03, speech.sample_rate)
        units, run_lengths = collapse(speech.encode(waveform))
        voice = {"speaker": 2, "style": "1"} if kind == "logmel" else {}
        audio = {"waveform": torch.from_numpy(waveform), "text": WITH_NAME, "saves": kind == "logmel"}
        torch.save(audio | {"voice": voice, "needs_durations": kind == "mimi"}, place / "audio.pt")
        ids = load_text_tokenizer(sample / "text_tokenizer").tokenizer.encode(WITH_NAME).ids
        expected[f"processor-{kind}"] = {"units": units, "run_lengths": run_lengths, "ids": ids}
        load = open_vocoder(tokenizer, voice=Voice(*map(str, voice.values())))
        if load is not None:
            vocoder = load()
            durations = run_lengths
            if vocoder.duration_predictor is not None:
                durations = vocoder.duration_predictor.predict(units)
                assert (durations > 1).any(), "durations of 1 prove less"
            pieces = list(vocoder.stream(expand(units, durations)))
            expected[f"processor-{kind}"]["spoken"] = np.concatenate(pieces)
            assert np.abs(expected[f"processor-{kind}"]["spoken"]).max() > 1e-3
    return expected


@pytest.mark.slow
def test_transformers_alone_computes_the_same(
    exported: tuple[Path, dict[str, dict[str, Any]]], with_processors: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Logits, likelihoods, greedy generations in four directions, ids and units, in a process that has no tolktrain."""
    folder, expected = exported
    environ = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, exported_models.__file__, str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-5000:]
    for name, wanted in expected.items():
        (file,) = folder.glob(f"{name}/[0-9].pt")
        found = torch.load(file, weights_only=True)
        file.unlink()
        assert found.pop("saved again")
        assert "ids from 0 to" in found.pop("beyond the text") and "ids from 0 to" in found.pop("beyond the units")
        for message, problem in zip(found.pop("refused"), REFUSALS, strict=True):
            assert problem in message
        torch.testing.assert_close(found.pop("padded likelihood"), found.pop("shorter likelihood"))
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor):
                positions = value.shape[-2] if value.dim() > 2 else None
                theirs = found[key] if positions is None else found[key][..., :positions, :]
                np.testing.assert_allclose(theirs, value, rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}")
            else:
                assert found[key].tolist() == value, f"{name} {key}"
        into = tmp_path / name  # what transformers has saved is read again
        assert cli.main(["import", str(folder / name / "again"), str(into)]) == 0
        assert _tensor_bytes(into) == _tensor_bytes(folder / name / "model")
    for name, wanted in with_processors.items():
        (file,) = folder.glob(f"{name}/[0-9].pt")
        found = torch.load(file, weights_only=True)
        file.unlink()
        _check_processor(name, found, wanted)
    for key in DIRECTIONS:
        varied = [len({str(token) for token in wanted[key]}) > 3 for wanted in expected.values()]
        assert varied.count(True) >= 2, f"{key}: repeats of one token prove less"


def _check_processor(name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["ids"].tolist() == [wanted["ids"]] and found["text"] == WITH_NAME and 0 not in wanted["ids"]
    assert found["padded"].sum(dim=1).tolist() == [len(wanted["ids"]), 1]
    assert found["questions"] == []  # whether to trust the code, which the caller has said
    assert len(np.unique(wanted["units"])) > 5  # otherwise constant units would pass
    assert found["units"].tolist() == wanted["units"].tolist(), name
    assert found["run_lengths"].tolist() == wanted["run_lengths"].tolist(), name
    assert found["short"].shape == (0, wanted["units"].shape[1])
    assert "resample" in found["rate"] and "mono" in found["stereo"] and "text, audio" in found["nothing"]
    if "spoken" in wanted:
        assert found["spoken_rate"] == {"processor-logmel": 16_000, "processor-mimi": 24_000}[name]
        np.testing.assert_allclose(found["spoken"].numpy(), wanted["spoken"], rtol=0, atol=1e-5)
        assert "expected 0 to" in found["no unit"]
    else:
        assert "`tolktrain generate` speaks them" in found["spoken"]
    if name == "processor-logmel":
        assert torch.equal(found["spoken again"], found["spoken"])
        assert torch.equal(found["again"], found["units"])


def _tensor_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", VARIANTS)
def test_export_import_export_gives_identical_bytes(
    exported: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, name: str
) -> None:
    """Also in the llama format, and in that of the authors where it can hold the model."""
    first = exported[0] / name / "model"
    assert cli.main(["import", str(first), str(tmp_path / "weights")]) == 0
    assert cli.main(["export", str(tmp_path / "weights"), str(tmp_path / "hf")]) == 0
    expected = canonical_state(_model(name))
    found = canonical_state(load_weights(tmp_path / "weights"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    assert _tensor_bytes(first) == _tensor_bytes(tmp_path / "weights") == _tensor_bytes(tmp_path / "hf")
    for file in ("config.json", "architecture.json"):
        one, two = (json.loads((folder / file).read_text()) for folder in (first, tmp_path / "hf"))
        assert one == two
    arguments = ["export", str(first), str(tmp_path / "published"), "--format", "published"]
    if VARIANTS[name].get("num_codebooks", 1) > 1:
        assert cli.main(arguments) == 2 and not (tmp_path / "published").exists()
        return
    assert cli.main(arguments) == 0
    file, backbone = (str(tmp_path / "published" / part) for part in ("model_ckpt.pt", "backbone"))
    assert cli.main(["import", file, str(tmp_path / "back"), "--backbone", backbone]) == 0
    assert _tensor_bytes(first) == _tensor_bytes(tmp_path / "back")


@pytest.mark.parametrize("name", ["everything", "codebooks"])
def test_text_half_as_llama(exported: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, name: str) -> None:
    """LlamaForCausalLM computes the logits of text; the folder is a backbone again."""
    from transformers import AutoModelForCausalLM

    (checkpoint,) = (exported[0] / name / "run" / "checkpoints").iterdir()
    assert cli.main(["export", str(checkpoint), str(tmp_path / "llama"), "--format", "llama"]) == 0
    model = _model(name)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    assert type(llama).__name__ == "LlamaForCausalLM"
    tokens = torch.arange(1, 40).unsqueeze(0)
    with torch.no_grad():
        found = llama(tokens).logits
    columns = torch.zeros(1, model.architecture.num_codebooks, tokens.shape[1], dtype=torch.int64)
    columns[:, 0] = tokens
    wanted = trace(model, {"input": columns})["text_logits"].detach()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    again = canonical_state(load_backbone(str(tmp_path / "llama")))
    for key, tensor in canonical_state(model).items():
        if key.startswith("backbone.") or key == "text_head.weight":
            assert torch.equal(again[key], tensor)
    vocabulary = model.architecture.text_vocab_size
    table = canonical_state(model)["text_embedding.weight"]
    assert torch.equal(again["text_embedding.weight"][:vocabulary], table[:vocabulary])


def test_bf16_and_what_is_refused(exported: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = write_checkpoint(run, 7, SmolTolk(_architecture(adapter_attention="published"), seed=4))
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="attends as the reference implementation does"):
        export_hf(ExportSource.of(checkpoint), tmp_path / "hf", "fp32", print)
    with pytest.raises(UserError, match="is a checkpoint; give --step with a run"):
        export_hf(ExportSource.of(checkpoint, 7), tmp_path / "hf", "fp32", print)
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob(".tmp*"))
    (checkpoint,) = (exported[0] / "everything" / "run" / "checkpoints").iterdir()
    export_hf(ExportSource.of(checkpoint), tmp_path / "hf", "bf16", print)
    tensors = load_file(next((tmp_path / "hf").glob("*.safetensors")))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_run_with_tokenizers(tiny_run: Path, tmp_path: Path, repository: Path) -> None:
    """Text that the exported tokenizer reads is text that the run's tokenizer reads; the card names the data."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    assert cli.main(["export", str(tiny_run), str(tmp_path / "hf"), "--step", "2"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    own = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert tokenizer("the little bird").input_ids == own.encode("the little bird").ids
    assert tokenizer.eos_token_id == 0
    assert sorted(path.name for path in (tmp_path / "hf" / "speech_tokenizer").iterdir()) == [
        *("centroids.safetensors", "speech_tokenizer.json"),
    ]
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| joint | 768 | backbone, pooling, speech | recognition, speech | 0.001 | stories |" in card
    assert "\n- step 2, stage 1\n" in card and "sampling_rate=processor.sampling_rate" in card
    assert f"| {DatasetInfo.read(repository / 'data' / 'sample' / 'train').license} |" in card
