"""The unit HiFi-GAN against a plain twin, its conversion, windows, voices and files; and the vocoders of tokenizers."""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hifigan_twin import CONFIG, SEVERAL, Twin, make_twin, save_published
from safetensors.torch import load_file, save_file

from tolktrain.errors import UserError
from tolktrain.units.__main__ import main
from tolktrain.units.base import Vocoder, decode, expand
from tolktrain.units.description import CENTROIDS_FILE, DESCRIPTION_FILE
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.vocoders.description import VOCODER_FILE
from tolktrain.units.vocoders.hifigan_config import HiFiGanSizes, read_published_config
from tolktrain.units.vocoders.kind import Voice
from tolktrain.units.vocoders.load import load_vocoder, open_vocoder
from tolktrain.units.vocoders.unit_hifigan import WEIGHTS_FILE, UnitHiFiGanVocoder, convert

UNITS = np.random.default_rng(0).permutation(500)[:9, None]
HOP = 640


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Folder of the embedded speech tokenizer: 500 units, 25 frames per second."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in (DESCRIPTION_FILE, CENTROIDS_FILE):
        shutil.copy(repository / "data" / "sample" / "speech_tokenizer" / name, folder)
    return folder


def _converted(folder: Path, tokenizer: Path, twin: Twin, names: bool = False) -> Path:
    checkpoint, config = save_published(folder / "published", twin)
    given: list[Path | None] = [None, None]
    if names:
        given = [folder / "speakers.txt", folder / "styles.txt"]
        (folder / "speakers.txt").write_text("ann\nbob\n")
        (folder / "styles.txt").write_text("calm\nglad")
    convert(folder / "vocoder", checkpoint, config, tokenizer, *given)
    return folder / "vocoder"


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, twin: Twin) -> Path:
    """A converted vocoder. Tests must not change it."""
    return _converted(tmp_path_factory.mktemp("hifigan"), tokenizer, twin)


@pytest.fixture(scope="module")
def vocoder(folder: Path, tokenizer: Path) -> Vocoder:
    return load_vocoder(tokenizer, folder)


def _expected(twin: Twin, units: np.ndarray, speaker: int = 0, style: int = 0, predict: bool = True) -> np.ndarray:
    with torch.no_grad():
        return twin(units[:, 0].tolist(), speaker, style, predict).numpy()


def test_audio_and_durations_are_those_of_the_definition(vocoder: Vocoder, twin: Twin) -> None:
    assert vocoder.duration_predictor is not None
    lengths = vocoder.duration_predictor.predict(UNITS)
    assert lengths.tolist() == twin.durations(UNITS[:, 0].tolist()).tolist()
    assert lengths.dtype == np.uint16 and len(set(lengths.tolist())) > 2 and min(lengths) == 1
    waveform = decode(vocoder, expand(UNITS, lengths))
    expected = _expected(twin, UNITS)
    assert waveform.dtype == np.float32 and waveform.shape == (int(lengths.sum()) * HOP,) == expected.shape
    assert expected.std() > 0.1 and np.abs(expected).max() < 0.95
    assert np.abs(waveform - expected).max() < 1e-6
    assert vocoder.sample_rate == 16_000


@pytest.mark.parametrize("voice", [Voice(), Voice("bob", "glad"), Voice("2", "1")])
def test_speakers_and_styles(tmp_path: Path, tokenizer: Path, voice: Voice) -> None:
    twin = make_twin(1, **SEVERAL)
    folder = _converted(tmp_path, tokenizer, twin, names=True)
    speaker, style = {None: 0, "bob": 1, "2": 2}[voice.speaker], {None: 0, "glad": 1, "1": 1}[voice.style]
    waveform = decode(load_vocoder(tokenizer, folder, voice), UNITS)
    assert np.abs(waveform - _expected(twin, UNITS, speaker, style, predict=False)).max() < 1e-6
    other = _expected(twin, UNITS, (speaker + 1) % 3, style, predict=False)
    assert np.abs(waveform - other).max() > 1e-3
    if voice == Voice():
        for wrong, message in (
            (Voice(speaker="eve"), "no speaker 'eve'; give a number from 0 to 2, or one of ann, bob"),
            (Voice(speaker="3"), "no speaker '3'"),
            (Voice(style="-1"), "no style '-1'; give a number from 0 to 1"),
        ):
            with pytest.raises(UserError, match=message):
                open_vocoder(tokenizer, folder, wrong)


def test_a_choice_that_there_is_not(tokenizer: Path, folder: Path) -> None:
    for voice, name in ((Voice("ann"), "speaker"), (Voice(None, "calm"), "style")):
        for given in (folder, None):
            with pytest.raises(UserError, match=f"has no choice of a {name}; leave it out"):
                open_vocoder(tokenizer, given, voice)


def test_both_forms_of_weight_normalization_and_none(tmp_path: Path, tokenizer: Path, folder: Path, twin: Twin) -> None:
    new = make_twin(new_norm=True)
    new.load_state_dict(twin.state_dict())  # PyTorch's own reading of the old names
    assert any("parametrizations" in name for name in new.state_dict())
    again = _converted(tmp_path, tokenizer, new)
    tensors = load_file(folder / WEIGHTS_FILE)
    assert not any("weight_" in name or "param" in name for name in tensors)
    for name, tensor in load_file(again / WEIGHTS_FILE).items():
        assert torch.equal(tensor, tensors[name])
    torch.save(tensors, tmp_path / "folded.pt")  # without the key of published files
    convert(tmp_path / "folded", tmp_path / "folded.pt", tmp_path / "published" / "config.json", tokenizer)
    assert (tmp_path / "folded" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def _sizes(**changes: Any) -> HiFiGanSizes:
    values = {
        "sample_rate": 16_000,
        "num_units": 500,
        "embedding_dim": 12,
        "num_speakers": None,
        "num_styles": None,
        "channels": 32,
        "upsample_rates": (8, 5, 4, 4),
        "upsample_kernel_sizes": (16, 11, 8, 8),
        "resblock_kernel_sizes": (3, 7, 11),
        "resblock_dilation_sizes": ((1, 3, 5),) * 3,
        "duration_channels": 10,
    }
    return HiFiGanSizes(**(values | changes))


class TestWindows:
    def test_windows_are_one_pass(self, folder: Path, twin: Twin) -> None:
        """At every border, for windows shorter and longer than what a frame depends on."""
        from tolktrain.units.vocoders.hifigan import UnitHiFiGan

        sizes = read_published_config(folder.parent / "published" / "config.json")
        generator = UnitHiFiGan(sizes).eval()
        generator.load_state_dict(load_file(folder / WEIGHTS_FILE))
        frames = np.random.default_rng(1).integers(0, 500, (83, 1))
        whole = _expected(twin, frames, predict=False)
        for length in (3, 26, 82, 83):
            windowed = UnitHiFiGanVocoder(sizes, generator, 25.0, window_frames=length)
            pieces = list(windowed.stream(frames))
            assert [len(piece) for piece in pieces[:-1]] == [length * HOP] * (-(-83 // length) - 1)
            assert np.abs(np.concatenate(pieces) - whole).max() < 1e-6

    def test_kernels_that_add_samples(self, tmp_path: Path, tokenizer: Path) -> None:
        """Odd differences of kernel and rate: the samples after the last frame are left out."""
        twin = make_twin(3, upsample_kernel_sizes=[16, 10, 7, 5])
        _converted(tmp_path, tokenizer, twin)
        description = json.loads((tmp_path / "vocoder" / VOCODER_FILE).read_text())
        sizes = HiFiGanSizes.model_validate_json(json.dumps(description["sizes"]))
        frames = np.random.default_rng(1).integers(0, 500, (40, 1))
        whole = _expected(twin, frames, predict=False)
        assert len(whole) > 40 * HOP
        vocoder = load_vocoder(tokenizer, tmp_path / "vocoder")
        assert isinstance(vocoder, UnitHiFiGanVocoder)
        windowed = UnitHiFiGanVocoder(sizes, vocoder._generator, 25.0, window_frames=7)
        for waveform in (decode(vocoder, frames), decode(windowed, frames)):
            assert len(waveform) == 40 * HOP and np.abs(waveform - whole[: 40 * HOP]).max() < 1e-6

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"upsample_rates": (5, 4), "upsample_kernel_sizes": (10, 7)},
            {"upsample_rates": (5, 4), "upsample_kernel_sizes": (11, 4)},
            {"upsample_rates": (2, 7), "upsample_kernel_sizes": (12, 9), "resblock_kernel_sizes": (5, 3)},
            {"upsample_rates": (3,), "upsample_kernel_sizes": (3,), "resblock_dilation_sizes": ((1,), (2,), (1, 1))},
        ],
    )
    def test_context_is_what_a_frame_depends_on(self, changes: dict[str, Any]) -> None:
        """Measured: how far a frame is heard in a generator without biases, whose weights are all positive."""
        from tolktrain.units.vocoders.hifigan import UnitHiFiGan

        if "resblock_kernel_sizes" in changes:
            changes = changes | {"resblock_dilation_sizes": ((1, 3), (9,))}
        sizes = _sizes(**changes)
        generator = UnitHiFiGan(sizes).double().eval()
        for name, tensor in generator.state_dict().items():
            tensor.copy_(torch.full_like(tensor, 0.0 if name.endswith(("bias", "dict.weight")) else 0.1))
        generator.dict.weight.data[1] = 1e-3
        middle = sizes.context_frames + 2
        units = torch.zeros(2 * middle + 1, dtype=torch.long)
        with torch.no_grad():
            units[middle] = 1
            reached = generator(units).nonzero()[:, 0] // sizes.hop  # all others are exactly 0
        first, last = int(reached.min()), int(reached.max())
        assert max(middle - first, last - middle) == sizes.context_frames

    def test_context_of_the_published_sizes(self) -> None:
        """Less than a second, so that windows of 16 s hardly compute anything twice."""
        sizes = _sizes(channels=512, upsample_rates=(5, 4, 4, 4, 2), upsample_kernel_sizes=(11, 8, 8, 8, 4))
        assert sizes.hop == HOP and 10 < sizes.context_frames < 25


def test_nothing_and_what_is_no_unit(vocoder: Vocoder) -> None:
    assert vocoder.duration_predictor is not None
    nothing = np.zeros((0, 1), np.uint16)
    assert decode(vocoder, nothing).shape == (0,) and vocoder.duration_predictor.predict(nothing).shape == (0,)
    assert decode(vocoder, UNITS[:1]).shape == (HOP,)
    for wrong, message in (
        (np.array([[500]]), "between 0 and 499"),
        (np.array([[-1]]), "between 0 and 499"),
        (np.array([1, 2]), r"\[frames, 1\]"),
        (np.zeros((2, 2), int), r"\[frames, 1\]"),
    ):
        for act in (lambda units: next(iter(vocoder.stream(units))), vocoder.duration_predictor.predict):
            with pytest.raises(UserError, match=message):
                act(wrong)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [(np.log(3.5), 2), (np.log(4.5), 4), (-5.0, 1), (np.log(2.4), 1), (12.0, None), (200.0, None), (np.nan, None)],
)
def test_rounding_of_durations(vocoder: Vocoder, bias: float, expected: int | None) -> None:
    """Halves to even, at least one frame, and not more than a minute."""
    assert isinstance(vocoder, UnitHiFiGanVocoder)
    generator = vocoder._generator
    kept = {name: tensor.clone() for name, tensor in generator.state_dict().items() if "proj" in name}
    try:
        for name, value in (("weight", 0.0), ("bias", float(bias))):
            generator.get_parameter(f"dur_predictor.proj.{name}").data.fill_(value)
        exact = float(generator.log_durations(torch.tensor([3])).detach().exp() - 1)
        if expected is None:
            with pytest.raises(UserError, match=r"a duration of .* at most 1500"):
                vocoder.run_lengths(UNITS)
        else:
            assert vocoder.run_lengths(UNITS).tolist() == [max(1, round(exact))] * len(UNITS) == [expected] * len(UNITS)
    finally:
        generator.load_state_dict(kept, strict=False)


def test_without_durations(tmp_path: Path, tokenizer: Path) -> None:
    twin = make_twin(2, dur_predictor_params=None)
    vocoder = load_vocoder(tokenizer, _converted(tmp_path, tokenizer, twin))
    assert vocoder.duration_predictor is None
    assert np.abs(decode(vocoder, UNITS) - _expected(twin, UNITS, predict=False)).max() < 1e-6


class TestConversion:
    def test_command(self, tmp_path: Path, tokenizer: Path, twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
        """Into the tokenizer's folder, whose vocoder it is from then on; only once; not into a folder of nothing."""
        home = shutil.copytree(tokenizer, tmp_path / "tokenizer")
        checkpoint, config = save_published(tmp_path / "published", twin)
        files = ["--checkpoint", str(checkpoint), "--config", str(config)]
        assert main(["vocoder", str(tmp_path / "empty"), *files]) == 2
        assert f"has no {DESCRIPTION_FILE}" in capsys.readouterr().err
        assert main(["vocoder", str(home), *files]) == 0
        assert "unit-hifigan, 16000 samples per second, with durations" in capsys.readouterr().out
        assert load_vocoder(home).name == "unit-hifigan" and load_vocoder(tokenizer).name == "griffin-lim"
        assert main(["vocoder", str(home), *files]) == 2
        assert "vocoder.json exists" in capsys.readouterr().err
        assert sorted(path.name for path in home.iterdir()) == sorted(
            (CENTROIDS_FILE, DESCRIPTION_FILE, VOCODER_FILE, WEIGHTS_FILE)
        )

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_foreign_class_is_named_and_not_executed(self, tmp_path: Path, tokenizer: Path, zipped: bool) -> None:
        """Also if another library allows the class."""
        mark = tmp_path / "executed"

        class Foreign:
            def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
                return os.mkdir, (str(mark),)

        _, config = save_published(tmp_path, make_twin())
        for value, name in ((Foreign(), "posix.mkdir"), (argparse.Namespace(lr=1), "argparse.Namespace")):
            path = tmp_path / "foreign.pt"
            content = {"generator": make_twin().state_dict(), "args": value}
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            message = f"names {name}, .* was not loaded, .* save the tensors alone"
            with torch.serialization.safe_globals([argparse.Namespace]):
                with pytest.raises(UserError, match=message):
                    convert(tmp_path / "out", path, config, tokenizer)
                assert argparse.Namespace in torch.serialization.get_safe_globals()
        assert not mark.exists() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."])
    def test_what_is_no_checkpoint(self, tmp_path: Path, tokenizer: Path, content: bytes) -> None:
        checkpoint, config = save_published(tmp_path, make_twin())
        checkpoint.write_bytes(content)
        with pytest.raises(UserError, match=r"generator\.pt (is not a readable checkpoint|holds no tensors)"):
            convert(tmp_path / "out", checkpoint, config, tokenizer)
        assert not (tmp_path / "out").exists()

    def test_a_cut_file(self, tmp_path: Path, tokenizer: Path) -> None:
        checkpoint, config = save_published(tmp_path, make_twin())
        checkpoint.write_bytes(checkpoint.read_bytes()[:-2000])
        with pytest.raises(UserError, match="is not a readable checkpoint"):
            convert(tmp_path / "out", checkpoint, config, tokenizer)
        with pytest.raises(UserError, match="none.pt cannot be read"):
            convert(tmp_path / "out", tmp_path / "none.pt", config, tokenizer)

    def test_names_and_shapes_are_listed(self, tmp_path: Path, tokenizer: Path, twin: Twin) -> None:
        checkpoint, config = save_published(tmp_path, twin)
        tensors = dict(twin.state_dict())
        del tensors["resblocks.4.convs2.1.bias"], tensors["ups.0.weight_g"]
        tensors["f0_embed.weight"] = torch.ones(2, 2)
        tensors["dict.weight"] = tensors["dict.weight"][:400]
        tensors["conv_post.weight_g"] = torch.ones(3, 1, 1)
        torch.save({"generator": tensors}, checkpoint)
        with pytest.raises(UserError) as caught:
            convert(tmp_path / "out", checkpoint, config, tokenizer)
        for part in (
            "missing: resblocks.4.convs2.1.bias;",
            "unknown: f0_embed.weight;",
            "wrong: conv_post.weight_g is [3, 1, 1] for [1, 2, 7], ups.0.weight_g is missing,"
            " dict.weight is [400, 12] instead of [500, 12])",
        ):
            assert part in str(caught.value)
        other = make_twin(3, upsample_initial_channel=64)
        torch.save({"generator": other.state_dict()}, checkpoint)
        with pytest.raises(UserError, match=r"wrong: conv_pre.weight is \[64, 12, 7\] .* and \d+ more"):
            convert(tmp_path / "out", checkpoint, config, tokenizer)
        tensors = dict(twin.state_dict()) | {"conv_pre.weight_v": torch.zeros(32, 12, 7)}
        torch.save({"generator": tensors}, checkpoint)
        with pytest.raises(UserError, match=r"not finite: conv_pre.weight"):
            convert(tmp_path / "out", checkpoint, config, tokenizer)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"f0": True}, "f0 is True: the vocoder needs a pitch"),
            ({"embedder_params": {"a": 1}}, "embedder_params is .*speaker's audio"),
            ({"resblock": "2"}, "resblock is '2'"),
            ({"num_embeddings": "many"}, "num_embeddings"),
            ({"num_embeddings": 1000}, "1000 units of one codebook.* 1 x 500: the units of another k-means .* noise"),
            ({"sampling_rate": 32_000}, "32000 samples per second are 50 frames per second.*have 25"),
            ({"code_hop_size": 320}, "code_hop_size is 320, .* 640 samples"),
            ({"model_in_dim": 24}, "model_in_dim is 24, .* 12 together"),
            ({"upsample_kernel_sizes": [16, 4, 8, 8]}, "leave gaps, since upsample_rates are"),
            ({"upsample_kernel_sizes": [16, 11, 8]}, "4 upsample_rates and 3 upsample_kernel_sizes"),
            ({"upsample_initial_channel": 24}, "24 channels cannot be halved 4 times"),
            ({"resblock_kernel_sizes": [3, 7, 10]}, "are not odd"),
            ({"resblock_kernel_sizes": [3, 7]}, "differ in length"),
            ({"upsample_rates": [], "upsample_kernel_sizes": []}, "upsample_rates"),
            ({"embedding_dim": 0}, "embedding_dim"),
            ({"dur_predictor_params": {"encoder_embed_dim": 12}}, "dur_predictor_params.var_pred_hidden_dim"),
            ({"dur_predictor_params": CONFIG["dur_predictor_params"] | {"encoder_embed_dim": 9}}, "embed_dim is 9"),
            (
                {"dur_predictor_params": CONFIG["dur_predictor_params"] | {"var_pred_kernel_size": 5}},
                "size is 5; only 3",
            ),
        ],
    )
    def test_configurations_that_do_not_fit(
        self, tmp_path: Path, tokenizer: Path, changes: dict[str, Any], message: str
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        with pytest.raises(UserError, match=rf"config\.json.*{message}"):
            convert(tmp_path / "out", tmp_path / "none.pt", tmp_path / "config.json", tokenizer)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ["a\nb\nc\nd", "a\na", "a\n\nb"])
    def test_names_of_speakers_that_do_not_fit(self, tmp_path: Path, tokenizer: Path, text: str) -> None:
        checkpoint, config = save_published(tmp_path, make_twin(1, **SEVERAL))
        (tmp_path / "speakers.txt").write_text(text)
        with pytest.raises(UserError, match=r"speakers\.txt has \d lines; expected the names of at most 3 speakers"):
            convert(tmp_path / "out", checkpoint, config, tokenizer, tmp_path / "speakers.txt")


class TestFiles:
    def test_nothing_is_unpickled_afterwards(
        self, folder: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object, **keywords: object) -> None:
            raise AssertionError("torch.load")

        monkeypatch.setattr(torch, "load", refuse)
        assert len(decode(load_vocoder(tokenizer, folder), UNITS)) == len(UNITS) * HOP

    def test_of_another_tokenizer(self, folder: Path, tokenizer: Path, tmp_path: Path) -> None:
        made = LogMelTokenizer.load(tokenizer)
        LogMelTokenizer(made.centroids + 1, made.analysis).save(tmp_path)
        with pytest.raises(UserError, match=r"the units of one would be noise to the other; name the vocoder of this"):
            open_vocoder(tmp_path, folder)

    def test_damaged(self, folder: Path, tokenizer: Path, tmp_path: Path) -> None:
        def damaged(change: Callable[[Path], object]) -> Path:
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
            copy = shutil.copytree(folder, tmp_path / "x")
            change(copy)
            return copy

        def edit(**changes: Any) -> Callable[[Path], object]:
            content = json.loads((folder / VOCODER_FILE).read_text()) | changes
            return lambda copy: (copy / VOCODER_FILE).write_text(json.dumps(content))

        sizes = json.loads((folder / VOCODER_FILE).read_text())["sizes"]
        tensors = load_file(folder / WEIGHTS_FILE)
        cases: list[tuple[Callable[[Path], object], str]] = [
            (lambda copy: (copy / VOCODER_FILE).unlink(), r"vocoder\.json cannot be read"),
            (lambda copy: (copy / VOCODER_FILE).write_text("[]"), "not a JSON object with a name"),
            (edit(name="griffin-lim"), "names the vocoder 'griffin-lim'; this version knows 'unit-hifigan'"),
            (edit(version="2"), "version"),
            (edit(sizes=sizes | {"channels": 64}), r"safetensors has other tensors|other sha256"),
            (edit(sizes=sizes | {"sample_rate": 8000}), "8000 samples per second are 12.5 frames"),
            (lambda copy: (copy / WEIGHTS_FILE).unlink(), r"vocoder\.safetensors cannot be read"),
            (lambda copy: save_file({**tensors, "x": torch.ones(1)}, copy / WEIGHTS_FILE), "other sha256"),
        ]
        for change, message in cases:
            with pytest.raises(UserError, match=message):
                load_vocoder(tokenizer, damaged(change))
