"""Mimi units against transformers run plainly, windows, batches, audio, and files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from small_models import save_mimi, tones

from tolktrain.errors import UserError
from tolktrain.units.base import collapse, decode, expand
from tolktrain.units.description import DESCRIPTION_FILE
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.mimi import MimiTokenizer
from tolktrain.units.vocoders.load import load_vocoder
from tolktrain.units.vocoders.mimi import MimiVocoder, context_frames

pytest.importorskip("transformers")
pytestmark = pytest.mark.transformers
RATE, HOP = 24_000, 1920
WAVEFORMS = [tones(seed, seconds, RATE) for seed, seconds in enumerate((3.0, 2.2, 0.01, 3.28, 2.2, 0.0, 0.08))]


@pytest.fixture(scope="module")
def folder(mimi_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of three of four codebooks. Tests must not change it."""
    folder = tmp_path_factory.mktemp("tokenizer") / "mimi"
    MimiTokenizer.create(folder, str(mimi_model), 3)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> MimiTokenizer:
    return MimiTokenizer.load(folder)


def _plain(model: Path) -> Any:
    """The model as transformers has it, in version 4 with the window that version 5 gives to its attention."""
    import transformers
    from transformers import masking_utils
    from transformers.models.mimi import modeling_mimi

    if hasattr(modeling_mimi, "create_causal_mask"):
        modeling_mimi.create_causal_mask = masking_utils.create_sliding_window_causal_mask
    return transformers.MimiModel.from_pretrained(model, attn_implementation="eager").eval()


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends what `_plain` changes."""
    from transformers.models.mimi import modeling_mimi

    if hasattr(modeling_mimi, "create_causal_mask"):
        monkeypatch.setattr(modeling_mimi, "create_causal_mask", modeling_mimi.create_causal_mask)


def _reference(model: Path, samples: np.ndarray, num_codebooks: int) -> np.ndarray:
    """Codes [frames, K] of transformers' own model in one pass over audio filled up to whole frames."""
    import torch

    mimi = _plain(model)
    padded = np.concatenate([samples, np.zeros(-len(samples) % HOP, np.float32)])
    with torch.no_grad():
        codes = mimi.encode(torch.from_numpy(padded)[None, None], num_quantizers=num_codebooks).audio_codes
    return codes[0].T.numpy()


@pytest.mark.parametrize("num_codebooks", [1, 3, 4])
def test_units_are_those_of_one_pass(mimi_model: Path, tmp_path: Path, num_codebooks: int) -> None:
    tokenizer = MimiTokenizer.create(tmp_path, str(mimi_model), num_codebooks)
    for waveform in (WAVEFORMS[0], WAVEFORMS[3]):
        units = tokenizer.encode(waveform)
        assert units.dtype == np.uint16
        assert all(len(np.unique(column)) > 4 for column in units.T)
        assert np.array_equal(units, _reference(mimi_model, waveform, num_codebooks))


def test_frames(tokenizer: MimiTokenizer) -> None:
    assert (tokenizer.frames_per_second, tokenizer.sample_rate) == (12.5, RATE)
    assert (tokenizer.num_codebooks, tokenizer.num_units) == (3, 16)
    shapes = [tokenizer.encode(np.zeros(n, np.float32)).shape for n in (0, 1, HOP, HOP + 1)]
    assert shapes == [(0, 3), (1, 3), (1, 3), (2, 3)]
    with pytest.raises(UserError, match="mono"):
        tokenizer.encode(np.zeros((2, 1000), np.float32))


def test_batches_change_nothing(folder: Path, tokenizer: MimiTokenizer) -> None:
    alone = [tokenizer.encode(waveform) for waveform in WAVEFORMS]
    assert [len(units) for units in alone] == [38, 28, 1, 41, 28, 0, 1]
    for batch_seconds in (0.0, 7.0, 100.0):
        batch = MimiTokenizer.load(folder, batch_seconds=batch_seconds).encode_batch(WAVEFORMS)
        assert all(np.array_equal(one, other) for one, other in zip(alone, batch, strict=True))


def test_windows_that_see_enough_are_one_pass(mimi_model: Path, tmp_path: Path) -> None:
    """Half of an overlap of 3 s is more than this model looks back: windows leave no trace."""
    waveform = tones(9, 12.3, RATE)
    whole = MimiTokenizer.create(tmp_path / "whole", str(mimi_model), 4)
    cut = MimiTokenizer.create(tmp_path / "cut", str(mimi_model), 4, window_seconds=5.0, overlap_seconds=3.0)
    bare = MimiTokenizer.create(tmp_path / "bare", str(mimi_model), 4, window_seconds=5.0, overlap_seconds=0.0)
    units = cut.encode(waveform)
    assert np.array_equal(units, whole.encode(waveform))
    assert not np.array_equal(bare.encode(waveform), units)
    batched = MimiTokenizer.load(tmp_path / "cut", batch_seconds=60)
    assert np.array_equal(batched.encode_batch([WAVEFORMS[0], waveform])[1], units)


def test_audio(folder: Path, mimi_model: Path, tokenizer: MimiTokenizer) -> None:
    import torch

    units = expand(*collapse(tokenizer.encode(WAVEFORMS[0])))
    vocoder = load_vocoder(folder)
    assert (vocoder.name, vocoder.sample_rate, vocoder.duration_predictor) == ("mimi", RATE, None)
    waveform = decode(vocoder, units)
    assert waveform.shape == (len(units) * HOP,) and waveform.dtype == np.float32
    with torch.no_grad():
        codes = torch.from_numpy(units.astype(np.int64)).T[None]
        expected = _plain(mimi_model).decode(codes).audio_values[0, 0].numpy()
    assert expected.std() > 0.1 and (np.abs(expected) < 1).mean() > 0.9
    assert np.allclose(waveform, np.clip(expected, -1, 1), atol=1e-5)
    assert decode(vocoder, np.zeros((0, 3), np.uint16)).shape == (0,)
    with pytest.raises(UserError, match="between 0 and 15"):
        decode(vocoder, np.full((2, 3), 16))
    with pytest.raises(UserError, match=r"\[frames, 3\]"):
        decode(vocoder, np.zeros((2, 1), np.uint16))


def test_audio_in_windows_is_that_of_one_pass(tokenizer: MimiTokenizer) -> None:
    """The context is what a frame depends on: the audio before it is another one, and after it the same."""
    config = tokenizer.model.config
    context = context_frames(config)
    assert 2 < context < 20
    units = np.random.default_rng(2).integers(0, 16, (4 * context + 3, 3))
    whole = decode(MimiVocoder(tokenizer), units)
    for length in (1, context + 2, len(units)):
        pieces = list(MimiVocoder(tokenizer, length).stream(units))
        assert len(pieces) == -(-len(units) // length)
        assert np.abs(np.concatenate(pieces) - whole).max() < 1e-5
    other = units.copy()
    other[context] = (other[context] + 1) % 16
    differs = np.abs(decode(MimiVocoder(tokenizer), other) - whole).reshape(-1, HOP).max(axis=1) > 1e-5
    assert not differs[:context].any() and differs[context] and not differs[2 * context + 1 :].any()


def test_context_of_the_published_model() -> None:
    """Eight layers that reach 249 steps of 40 ms back, and convolutions: 80 seconds at 12.5 frames per second."""
    import transformers

    config = transformers.MimiConfig()
    assert config.sliding_window == 250 and config.num_hidden_layers == 8
    assert 996 <= context_frames(config) < 1010


def test_attention_reaches_as_far_as_in_training(tokenizer: MimiTokenizer) -> None:
    """Two layers of four steps of 40 ms, and convolutions: other audio more than a second before changes nothing."""
    waveform, other = WAVEFORMS[3], WAVEFORMS[3].copy()
    other[:RATE] = tones(99, 1.0, RATE)
    units, changed = tokenizer.encode(waveform), tokenizer.encode(other)
    assert not np.array_equal(units[:13], changed[:13])
    assert np.array_equal(units[25:], changed[25:])


def test_load(folder: Path, tokenizer: MimiTokenizer) -> None:
    assert [path.name for path in folder.iterdir()] == [DESCRIPTION_FILE]
    loaded = load_speech_tokenizer(folder)
    assert isinstance(loaded, MimiTokenizer)
    assert (loaded.name, loaded.version, loaded.sha256) == ("mimi", "1", tokenizer.sha256)


def test_digest_follows_everything(mimi_model: Path, tmp_path: Path, tokenizer: MimiTokenizer) -> None:
    model = str(mimi_model)
    digests = [
        tokenizer.sha256,
        MimiTokenizer.create(tmp_path / "codebooks", model, 2).sha256,
        MimiTokenizer.create(tmp_path / "window", model, 3, window_seconds=50.0).sha256,
        MimiTokenizer.create(tmp_path / "overlap", model, 3, overlap_seconds=10.0).sha256,
        MimiTokenizer.create(tmp_path / "model", str(save_mimi(tmp_path / "other", seed=1)), 3).sha256,
    ]
    assert len(set(digests)) == 5
    shutil.copytree(mimi_model, tmp_path / "copy")
    assert MimiTokenizer.create(tmp_path / "same", str(tmp_path / "copy"), 3).sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_units": 32}, "changed by hand"),
        ({"frames_per_second": 25.0}, "changed by hand"),
        ({"sample_rate": 16_000}, "changed by hand"),
        ({"windows": {"window_seconds": 50.0}}, "changed by hand"),
        ({"num_codebooks": 2}, "changed by hand"),
        ({"num_codebooks": 5}, "num_codebooks is 5; give a number from 1 to 4"),
        ({"sha256": "0"}, "changed by hand"),
        ({"version": "2"}, "version"),
    ],
)
def test_descriptions_that_do_not_fit(folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    shutil.copytree(folder, tmp_path / "changed")
    path = tmp_path / "changed" / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        MimiTokenizer.load(tmp_path / "changed")


@pytest.mark.parametrize("num_codebooks", [0, 5])
def test_more_codebooks_than_there_are(mimi_model: Path, tmp_path: Path, num_codebooks: int) -> None:
    with pytest.raises(UserError, match="from 1 to 4"):
        MimiTokenizer.create(tmp_path / "tokenizer", str(mimi_model), num_codebooks)
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("window", "message"), [(0.0, "window_seconds: Input should be greater than 0"), (15.0, "shorter than the window")]
)
def test_windows_that_cannot_be(mimi_model: Path, tmp_path: Path, window: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MimiTokenizer.create(tmp_path / "tokenizer", str(mimi_model), 2, window_seconds=window)
    assert not (tmp_path / "tokenizer").exists()


def test_models_that_look_ahead_are_refused(tmp_path: Path) -> None:
    model = save_mimi(tmp_path / "model", use_causal_conv=False)
    with pytest.raises(UserError, match="use_causal_conv is False.*give a causal model"):
        MimiTokenizer.create(tmp_path / "tokenizer", str(model), 2)


def test_another_model_in_the_same_place(tmp_path: Path) -> None:
    model = save_mimi(tmp_path / "tokenizer" / "model")
    MimiTokenizer.create(tmp_path / "tokenizer", str(model), 2)
    save_mimi(model, seed=3)
    with pytest.raises(UserError, match="not those that the speech tokenizer was made with"):
        MimiTokenizer.load(tmp_path / "tokenizer")


def _codes(folder: Path, waveform: np.ndarray) -> np.ndarray:
    return MimiTokenizer.create(folder.with_name(f"{folder.name}-tokenizer"), str(folder), 4).encode(waveform)


def test_rotary_base_in_either_layout(mimi_model: Path, tmp_path: Path) -> None:
    """transformers 4 writes `rope_theta`, version 5 a table; each version must compute what the file means."""
    codes = {}
    for name, settings in {
        "usual": {"rope_theta": 10_000.0},
        "older": {"rope_theta": 3.0},
        "newer": {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    }.items():
        shutil.copytree(mimi_model, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        for key in ("rope_theta", "rope_parameters"):
            config.pop(key, None)
        path.write_text(json.dumps(config | settings))
        codes[name] = _codes(tmp_path / name, WAVEFORMS[0])
    assert np.array_equal(codes["older"], codes["newer"])
    assert not np.array_equal(codes["older"], codes["usual"])


def test_half_precision_is_computed_in_full(mimi_model: Path, tmp_path: Path) -> None:
    """Weights in bfloat16 give the units of the same numbers in float32."""
    import torch

    rounded = {name: value.bfloat16() for name, value in load_file(mimi_model / "model.safetensors").items()}
    for dtype in (torch.bfloat16, torch.float32):
        folder = shutil.copytree(mimi_model, tmp_path / str(dtype))
        stored = {name: value.to(dtype) for name, value in rounded.items()}
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    units = [_codes(tmp_path / str(dtype), WAVEFORMS[0]) for dtype in (torch.bfloat16, torch.float32)]
    assert np.array_equal(*units)


@pytest.mark.parametrize(
    "name", ["embed_sum", "decoder_transformer.layers.1.mlp.fc1.weight", "encoder.layers.0.conv.bias"]
)
def test_weights_that_are_missing_are_refused(mimi_model: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(mimi_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    missing = sorted(key for key in weights if key.endswith(name))[0]
    del weights[missing]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights of MimiModel .*{name.split('.')[-1]}.*random"):
        MimiTokenizer.create(tmp_path / "tokenizer", str(folder), 4)
