"""HuBERT units against transformers run plainly, windows, batches, and files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_models import save_hubert, tones

from tolktrain.errors import UserError
from tolktrain.units.description import CENTROIDS_FILE, DESCRIPTION_FILE
from tolktrain.units.hubert import HubertTokenizer
from tolktrain.units.load import load_speech_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.transformers
WAVEFORMS = [tones(seed, seconds) for seed, seconds in enumerate((3.0, 2.2, 0.04, 3.3, 2.2, 0.0, 1.03))]


@pytest.fixture(scope="module")
def folder(hubert_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the third of four layers. Tests must not change it."""
    folder = tmp_path_factory.mktemp("tokenizer") / "hubert"
    HubertTokenizer.fit_from(folder, str(hubert_model), iter(WAVEFORMS), 3, 40, seed=0, hours=1.0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HubertTokenizer:
    return HubertTokenizer.load(folder)


def _reference(model: Path, samples: np.ndarray, layer: int) -> np.ndarray:
    """Hidden states of transformers' own feature extractor and model in one pass: [frames, dim]."""
    import torch
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(model)
    inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        hubert = transformers.HubertModel.from_pretrained(model).eval()
        output = hubert(inputs, output_hidden_states=True)
        # The last of the hidden states is what the last layer gives; version 5 of transformers has it without the norm.
        last = layer == hubert.config.num_hidden_layers
        return (output.last_hidden_state if last else output.hidden_states[layer])[0].numpy()


def _nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.linalg.norm(features[:, None].astype(np.float64) - centroids[None], axis=2).argmin(axis=1)


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_units_are_those_of_one_pass(hubert_model: Path, tmp_path: Path, layer: int) -> None:
    features = [_reference(hubert_model, waveform, layer) for waveform in (WAVEFORMS[0], WAVEFORMS[3])]
    centroids = np.concatenate(features)[::5].round(2)
    tokenizer = HubertTokenizer.create(tmp_path, str(hubert_model), centroids, layer)
    assert tokenizer.num_units == len(centroids)
    for waveform, expected in zip((WAVEFORMS[0], WAVEFORMS[3]), features, strict=True):
        units = tokenizer.encode(waveform)
        assert units.dtype == np.uint16 and len(np.unique(units)) >= 10
        assert np.array_equal(units[:, 0], _nearest(expected, centroids.astype(np.float32)))


def test_frames(tokenizer: HubertTokenizer) -> None:
    assert (tokenizer.frames_per_second, tokenizer.num_codebooks, tokenizer.sample_rate) == (25.0, 1, 16_000)
    # A frame every 640 samples that sees 720.
    assert [len(tokenizer.encode(np.zeros(n, np.float32))) for n in (719, 720, 1359, 1360)] == [0, 1, 1, 2]
    with pytest.raises(UserError, match="mono"):
        tokenizer.encode(np.zeros((2, 1000), np.float32))


def test_batches_change_nothing(folder: Path, tokenizer: HubertTokenizer) -> None:
    alone = [tokenizer.encode(waveform) for waveform in WAVEFORMS]
    assert [len(units) for units in alone] == [74, 54, 0, 82, 54, 0, 25]
    for batch_seconds in (0.0, 7.0, 100.0):
        batch = HubertTokenizer.load(folder, batch_seconds=batch_seconds).encode_batch(WAVEFORMS)
        assert all(np.array_equal(one, other) for one, other in zip(alone, batch, strict=True))


def test_padding_would_matter(hubert_model: Path) -> None:
    """What the batches above avoid: transformers' own padding changes the frames of the shorter waveforms.

    Of the group norm, that is; without it attention masks suffice.
    """
    import torch
    import transformers

    model = transformers.HubertModel.from_pretrained(hubert_model).eval()
    short, long = torch.from_numpy(WAVEFORMS[1])[None], torch.from_numpy(WAVEFORMS[0])[None]
    padded = torch.nn.functional.pad(short, (0, long.shape[1] - short.shape[1]))
    mask = torch.arange(long.shape[1])[None] < short.shape[1]
    with torch.no_grad():
        alone = model(short).last_hidden_state[0]
        together = model(padded, attention_mask=mask.long()).last_hidden_state[0, : len(alone)]
    assert torch.allclose(alone, together, atol=1e-4) == (model.config.feat_extract_norm == "layer")


def test_long_audio_in_windows(hubert_model: Path, tmp_path: Path) -> None:
    waveform = tones(9, 10.0)
    centroids = _reference(hubert_model, waveform, 2)[::6]
    settings = {"window_seconds": 4.0, "overlap_seconds": 1.0, "normalize": True}
    tokenizer = HubertTokenizer.create(tmp_path, str(hubert_model), centroids, 2, **settings)  # type: ignore[arg-type]
    # Windows of 100 frames that share 25; written out here, each in a pass of its own.
    scaled = ((waveform - waveform.mean(dtype=np.float64)) / np.sqrt(waveform.var(dtype=np.float64) + 1e-7)).astype(
        np.float32
    )
    plain = HubertTokenizer.create(tmp_path / "plain", str(hubert_model), centroids, 2, normalize=False)
    expected = []
    for start, first, last in ((0, 0, 87), (75, 87, 162), (149, 162, 249)):
        units = plain.encode(scaled[start * 640 : (start + 99) * 640 + 720])
        assert len(units) == 100
        expected.append(units[first - start : last - start])
    found = tokenizer.encode(waveform)
    assert np.array_equal(found, np.concatenate(expected))
    assert np.array_equal(found, tokenizer.encode(waveform))
    batched = HubertTokenizer.load(tmp_path, batch_seconds=60)
    assert np.array_equal(batched.encode_batch([WAVEFORMS[0], waveform, WAVEFORMS[1]])[1], found)


def test_one_window_takes_what_fits(hubert_model: Path, tmp_path: Path) -> None:
    waveform = tones(9, 4.0)
    centroids = _reference(hubert_model, waveform, 2)[::6]
    for number, window in enumerate((4.0, 30.0)):
        tokenizer = HubertTokenizer.create(
            tmp_path / str(number), str(hubert_model), centroids, 2, window_seconds=window, overlap_seconds=1.0
        )
        assert np.array_equal(
            tokenizer.encode(waveform)[:, 0], _nearest(_reference(hubert_model, waveform, 2), centroids)
        )


def test_fit_is_reproducible(hubert_model: Path, tokenizer: HubertTokenizer, tmp_path: Path) -> None:
    def fit(name: str, waveforms: list[np.ndarray], seed: int) -> str:
        model = str(hubert_model)
        return HubertTokenizer.fit_from(tmp_path / name, model, iter(waveforms), 3, 40, seed=seed, hours=1.0).sha256

    assert fit("same", WAVEFORMS, 0) == tokenizer.sha256
    assert len({tokenizer.sha256, fit("seed", WAVEFORMS, 1), fit("order", WAVEFORMS[::-1], 0)}) == 3


def test_digest_follows_everything(hubert_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(5, 24)).astype(np.float32)

    def sha256(name: str, **changes: object) -> str:
        settings = {"model": str(hubert_model), "centroids": centroids, "layer": 2, "normalize": True} | changes
        return HubertTokenizer.create(tmp_path / name, **settings).sha256  # type: ignore[arg-type]

    shutil.copytree(hubert_model, tmp_path / "copy")
    first = sha256("first")
    assert sha256("same", model=str(tmp_path / "copy")) == first
    others = [
        sha256("layer", layer=3),
        sha256("normalize", normalize=False),
        sha256("window", window_seconds=20.0),
        sha256("overlap", overlap_seconds=2.0),
        sha256("centroids", centroids=centroids + 1e-3),
        sha256("model", model=str(save_hubert(tmp_path / "other", stable=True, seed=5))),
    ]
    assert len({first, *others}) == 7


def test_load(folder: Path, tokenizer: HubertTokenizer) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CENTROIDS_FILE, DESCRIPTION_FILE]
    loaded = load_speech_tokenizer(folder)
    assert isinstance(loaded, HubertTokenizer)
    assert (loaded.name, loaded.version, loaded.num_units) == ("hubert-kmeans", "1", 40)
    assert loaded.sha256 == tokenizer.sha256
    assert not hasattr(loaded, "decode")


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_changed_centroids(folder: Path, tmp_path: Path) -> None:
    changed = _copy(folder, tmp_path / "changed")
    save_file({"centroids": np.zeros((40, 24), np.float32)}, changed / CENTROIDS_FILE)
    with pytest.raises(UserError, match="does not belong to the centroids next to it"):
        HubertTokenizer.load(changed)
    (changed / CENTROIDS_FILE).unlink()
    with pytest.raises(UserError, match="centroids.safetensors cannot be read"):
        HubertTokenizer.load(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_units": 39}, r"says float32 \(39, 24\)"),
        ({"frames_per_second": 50.0}, "does not belong"),
        ({"frames": {"layer": 2, "normalize": True}}, "does not belong"),
        ({"frames": {"layer": 5, "normalize": True}}, "layer 5 is beyond the model.*from 1 to 4"),
        ({"frames": {"layer": 0, "normalize": True}}, r"frames\.layer"),
        ({"num_codebooks": 2}, "num_codebooks"),
        ({"version": "2"}, "version"),
    ],
)
def test_descriptions_that_do_not_fit(folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    changed = _copy(folder, tmp_path / "changed")
    path = changed / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        HubertTokenizer.load(changed)


def test_another_model_in_the_same_place(tmp_path: Path) -> None:
    model = save_hubert(tmp_path / "tokenizer" / "model", stable=False)
    HubertTokenizer.create(tmp_path / "tokenizer", str(model), np.zeros((3, 24)), 2)
    moved = _copy(tmp_path / "tokenizer", tmp_path / "moved")
    HubertTokenizer.load(moved)
    save_hubert(moved / "model", stable=False, seed=7)
    with pytest.raises(UserError, match="not those that the speech tokenizer was made with"):
        HubertTokenizer.load(moved)
    HubertTokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize("shape", [(3, 23), (0, 24), (24,)])
def test_centroids_of_another_model(hubert_model: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"needs \[1 to 65535, 24\]"):
        HubertTokenizer.create(tmp_path / "tokenizer", str(hubert_model), np.zeros(shape), 2)
    assert not (tmp_path / "tokenizer").exists()
