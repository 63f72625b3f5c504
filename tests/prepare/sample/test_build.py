"""The program that builds the corpus: a small corpus of the same kind, twice; and its messages."""

from dataclasses import replace
from pathlib import Path

import pytest

from sample_corpus import build as sample
from sample_corpus import corpus, dialogues
from sample_corpus.corpus import Split
from tolktrain.data.records import DatasetInfo
from tolktrain.files.terminal import Console


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = tuple(Split(split.name, len(split.voices), split.voices) for split in corpus.SPLITS)
    monkeypatch.setattr(corpus, "SPLITS", splits)
    monkeypatch.setattr(corpus, "NUM_UNITS", 40)
    monkeypatch.setattr(corpus, "TEXT_VOCAB_SIZE", 400)
    few = tuple(replace(split, num_tales=2, voices=split.voices[:1]) for split in dialogues.SPLITS)
    monkeypatch.setattr(dialogues, "SPLITS", few)


@pytest.mark.usefixtures("speaking", "small")
@pytest.mark.slow
def test_the_same_bytes_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--output", str(tmp_path / "one"), "--processes", "1"]) == 0
    assert "heldout_voices" in capsys.readouterr().out
    assert sample.main(["--verify", str(tmp_path / "one"), "--processes", "2"]) == 0
    assert "The rebuild gives the same bytes." in capsys.readouterr().out
    assert DatasetInfo.read(tmp_path / "one" / "heldout_voices").num_records == len(corpus.NEW_VOICES)
    spoken = DatasetInfo.read(tmp_path / "one" / "dialogues" / "train").conversations
    assert spoken is not None and spoken.num_conversations == 2
    assert [path.name for path in tmp_path.iterdir()] == ["one"]

    (tmp_path / "one" / "README.md").write_text("changed")
    (tmp_path / "one" / "surplus").touch()
    assert sample.main(["--verify", str(tmp_path / "one"), "--processes", "2"]) == 1
    output = capsys.readouterr().out.replace("\n", "")
    assert "differs: README.md" in output and "surplus" in output


def test_a_folder_with_content_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").touch()
    assert sample.main(["--output", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err and (tmp_path / "kept").exists()


def test_verifying_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--verify", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, processes: int, console: Console) -> None:
        (folder / "half").touch()
        raise RuntimeError("interrupted")

    monkeypatch.setattr(sample, "build", fail)
    with pytest.raises(RuntimeError):
        sample.create(tmp_path / "data", overwrite=False, processes=1, console=Console())
    assert not list(tmp_path.iterdir())
