"""Folders of any kind of tokenizer, and their descriptions without weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from tolktrain.errors import UserError
from tolktrain.units.__main__ import main
from tolktrain.units.base import SpeechTokenizer
from tolktrain.units.description import DESCRIPTION_FILE, SpeechTokenizerInfo
from tolktrain.units.hubert import HubertTokenizer
from tolktrain.units.load import describe_speech_tokenizer, load_speech_tokenizer
from tolktrain.units.mimi import MimiTokenizer
from tolktrain.units.vocoders.load import load_vocoder, open_vocoder


def _info(tokenizer: SpeechTokenizer) -> SpeechTokenizerInfo:
    return SpeechTokenizerInfo(
        name=tokenizer.name,
        version=tokenizer.version,
        num_units=tokenizer.num_units,
        num_codebooks=tokenizer.num_codebooks,
        frames_per_second=tokenizer.frames_per_second,
        sha256=tokenizer.sha256,
    )


@pytest.fixture(scope="module")
def hubert(hubert_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hubert") / "tokenizer"
    HubertTokenizer.create(folder, str(hubert_model), np.eye(5, 24), 2)
    return folder


@pytest.fixture(scope="module")
def mimi(mimi_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mimi") / "tokenizer"
    MimiTokenizer.create(folder, str(mimi_model), 3)
    return folder


def test_description_of_each_kind(hubert: Path, mimi: Path, repository: Path) -> None:
    for folder in (hubert, mimi, repository / "data" / "sample" / "speech_tokenizer"):
        assert describe_speech_tokenizer(folder) == _info(load_speech_tokenizer(folder))


def test_description_needs_neither_weights_nor_torch(hubert: Path, mimi: Path, tmp_path: Path) -> None:
    for folder in (hubert, mimi):
        alone = tmp_path / folder.parent.name
        alone.mkdir()
        shutil.copy(folder / DESCRIPTION_FILE, alone)
        assert describe_speech_tokenizer(alone) == describe_speech_tokenizer(folder)
    program = (
        "import sys\n"
        "from tolktrain.units.load import describe_speech_tokenizer\n"
        "from tolktrain.units.vocoders.load import open_vocoder\n"
        f"print(describe_speech_tokenizer({str(hubert)!r}).num_units, open_vocoder({str(mimi)!r}) is not None)\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'librosa', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["5 True", "[]"]


def test_vocoders(hubert: Path, mimi: Path, repository: Path) -> None:
    assert load_vocoder(mimi).name == "mimi"
    assert load_vocoder(repository / "data" / "sample" / "speech_tokenizer").name == "griffin-lim"
    assert open_vocoder(hubert) is None
    message = r"'hubert-kmeans', which cannot turn units into audio, .* convert a vocoder of its units with python -m"
    with pytest.raises(UserError, match=message):
        load_vocoder(hubert)


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        describe_speech_tokenizer(tmp_path)
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps({"name": "encodec"}))
    for read in (describe_speech_tokenizer, load_speech_tokenizer, load_vocoder):
        with pytest.raises(
            UserError, match="'encodec'; this version knows 'logmel-kmeans', 'hubert-kmeans' and 'mimi'"
        ):
            read(tmp_path)
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps({"name": "mimi"}))
    with pytest.raises(UserError, match="does not describe a mimi tokenizer of version 1.*num_codebooks"):
        describe_speech_tokenizer(tmp_path)


def test_command_makes_a_tokenizer_of_a_published_file(
    hubert_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kmeans = MiniBatchKMeans(6, n_init=1, random_state=0).fit(np.random.default_rng(0).normal(size=(50, 24)))
    joblib.dump(kmeans, tmp_path / "km.bin")
    folder = tmp_path / "tokenizer"
    arguments = ["hubert", str(folder), "--model", str(hubert_model), "--layer", "2"]
    assert main([*arguments, "--kmeans", str(tmp_path / "km.bin")]) == 0
    expected = HubertTokenizer.create(tmp_path / "other", str(hubert_model), kmeans.cluster_centers_, 2)
    assert describe_speech_tokenizer(folder) == _info(expected)
    assert expected.sha256 in capsys.readouterr().out
    assert main([*arguments, "--kmeans", str(tmp_path / "nothing")]) == 2
    assert "nothing cannot be read" in capsys.readouterr().err
    assert main([*arguments[:-1], "0", "--kmeans", str(tmp_path / "km.bin")]) == 2
    assert "layer: Input should be greater than 0" in capsys.readouterr().err


def test_command_makes_a_mimi_tokenizer(mimi_model: Path, tmp_path: Path) -> None:
    assert main(["mimi", str(tmp_path / "mimi"), "--model", str(mimi_model), "--codebooks", "3"]) == 0
    expected = MimiTokenizer.create(tmp_path / "other", str(mimi_model), 3)
    assert describe_speech_tokenizer(tmp_path / "mimi") == _info(expected)
