"""`inspect_dataset` as a user meets it: what it prints, the files it leaves, and its complaints."""

import io
import json
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import describe, random_records, write_dataset
from small_disk import MakeDisk

from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.inspect import run
from tolktrain.inspect.audio import PAUSE_SECONDS, speech_frames
from tolktrain.inspect.run import InspectOptions, chosen_records, evenly, inspect_dataset
from tolktrain.inspect.spans import TakenApart
from tolktrain.inspect.tokenizers import fetch_tokenizers
from tolktrain.units.load import load_speech_tokenizer

Printed = Callable[[], str]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small aligned set without tokenizers. Tests must not change it."""
    return write_dataset(tmp_path_factory.mktemp("plain") / "train", random_records(10))


@pytest.fixture
def sample(repository: Path) -> Path:
    return repository / "data" / "sample"


def look(path: Path | str, output: Path, console: Console, **options: Any) -> None:
    inspect_dataset(InspectOptions(path=str(path), output=output, **options), console)


def test_the_sample(
    sample: Path, tmp_path: Path, console: Console, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TakenApart] = []
    monkeypatch.setattr(run, "speech_frames", lambda apart, most: seen.append(apart) or speech_frames(apart, most))
    options = {"records": 1, "statistics_records": 8, "audio_seconds": 4.0, "sequence_length": 200}
    look(sample / "heldout_voices", tmp_path / "out", console, **options)
    text = printed()
    assert "spoken-stories, split heldout_voices" in text and "CC0-1.0" in text
    assert "Statistics of 8 of 20 records" in text
    assert "Record 10  heldout_voices-0010" in text
    content = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert content["records"] == 8 and content["codebooks"][0]["num_units"] == 500
    (name,) = content["sounds"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"statistics.json", "statistics.png", name}

    tokenizer = load_speech_tokenizer(sample / "speech_tokenizer")
    stretches = speech_frames(seen[0], 100)
    assert len(stretches) > 1 and sum(map(len, stretches)) <= 100
    with wave.open(str(tmp_path / "out" / name)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    pause = round(PAUSE_SECONDS * 16_000)
    assert len(samples) == sum(map(len, stretches)) * 640 + (len(stretches) - 1) * pause
    begin = 0
    for frames in stretches:
        waveform = samples[begin : begin + len(frames) * 640]
        again = tokenizer.encode(waveform)
        assert (again == frames).mean() > 0.9
        begin += len(waveform) + pause


def test_without_tokenizers(plain: Path, tmp_path: Path, console: Console, printed: Printed) -> None:
    look(plain, tmp_path / "out", console, records=1)
    text = " ".join(printed().split())
    assert "shown as numbers; name its folder with --text-tokenizer" in text
    assert "No audio: speech tokenizer none found next to the data" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"statistics.json", "statistics.png"}


def test_the_default_folder(plain: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inspect_dataset(InspectOptions(path=str(plain), records=0), console)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["inspect-random-train"]


def test_the_strategy_is_the_richest_that_the_data_allows(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "save_picture", lambda statistics, path: path.write_bytes(b""))
    options: dict[str, dict[str, bool]] = {
        "interleaved": {},
        "recognition": {"aligned": False},
        "speech": {"aligned": False, "text": False},
        "text": {"aligned": False, "speech": False},
    }
    for strategy, lacking in options.items():
        write_dataset(tmp_path / strategy, random_records(2, **lacking))
        look(tmp_path / strategy, tmp_path / "out", console, records=1)
        assert json.loads((tmp_path / "out" / "statistics.json").read_text())["strategy"] == strategy


def test_choice_of_records() -> None:
    assert chosen_records(5, 9) == chosen_records(5, 5) == [0, 1, 2, 3, 4]
    chosen = chosen_records(1000, 20)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen) and max(chosen) < 1000
    assert sum(b - a > 1 for a, b in zip(chosen, chosen[1:], strict=False)) == 7  # 8 stretches
    assert chosen_records(1000, 3) == [0, 333, 666]
    for total, most in ((9, 8), (17, 16), (23, 20), (2001, 2000)):
        chosen = chosen_records(total, most)
        assert len(set(chosen)) == most and max(chosen) < total
    assert evenly([3, 5, 7, 9], 2) == [5, 9]
    assert evenly([3, 5], 9) == [3, 5]
    assert evenly([3, 5], 0) == []


def test_files_of_an_earlier_look_are_replaced(
    sample: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "save_picture", lambda statistics, path: path.write_bytes(b""))
    quick = {"statistics_records": 3, "sequence_length": 80, "audio_seconds": 0.2}
    output = tmp_path / "out"
    look(sample / "heldout_voices", output, console, records=3, **quick)
    (output / "record-notes.txt").write_text("mine")
    look(sample / "heldout_voices", output, console, records=1, **quick)
    assert len(list(output.glob("*.wav"))) == 1 and len(list(output.iterdir())) == 4
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_wav", full)
    with pytest.raises(OSError, match="No space"):
        look(sample / "heldout_voices", output, console, records=3, **quick)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "both"}, "'both' is unknown; use one of speech, text, interleaved"),
        ({"records": -1}, "--records is -1; it must be at least 0"),
        ({"sequence_length": 0}, "--sequence-length is 0"),
        ({"text_tokenizer": "/nowhere"}, "/nowhere/tokenizer.json does not exist"),
        ({"speech_tokenizer": "/nowhere"}, "/nowhere/speech_tokenizer.json cannot be read"),
    ],
)
def test_bad_options(plain: Path, tmp_path: Path, console: Console, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        look(plain, tmp_path / "out", console, **options)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_data_set(plain: Path, tmp_path: Path, console: Console) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(plain, tmp_path / "half")
    (tmp_path / "half" / "index.json").unlink()
    cases = {
        tmp_path / "absent": "does not exist; name the folder of a data set",
        tmp_path / "empty": "no data set: it has no index.json and no dataset.json; name another folder",
        tmp_path / "half": "no data set: it has no index.json; name another",
        plain.parent: "it holds the data sets train: name one of them",
    }
    for path, message in cases.items():
        with pytest.raises(UserError) as error:
            look(path, tmp_path / "out", console)
        assert message in str(error.value)
    with pytest.raises(UserError, match="no address of a storage"):
        look("ftp://host/train", tmp_path / "out", console)


def test_data_that_cannot_serve_a_strategy(tmp_path: Path, console: Console) -> None:
    path = write_dataset(tmp_path / "unaligned", random_records(2, aligned=False))
    with pytest.raises(UserError, match="'random' has no word alignment"):
        look(path, tmp_path / "out", console, strategy="interleaved")


def test_a_record_that_contradicts_dataset_json(tmp_path: Path, console: Console) -> None:
    records = random_records(3)
    path = write_dataset(tmp_path / "broken", records)
    info = describe(records)
    assert info.speech is not None
    info.model_copy(update={"speech": info.speech.model_copy(update={"num_units": 9})}).write(path)
    with pytest.raises(UserError, match="outside the speech vocabulary of 9 ids"):
        look(path, tmp_path / "out", console)


def test_tokenizers_of_other_data(sample: Path, tmp_path: Path, console: Console, printed: Printed) -> None:
    path = write_dataset(tmp_path / "set" / "train", random_records(2))
    for option, what in (("text_tokenizer", "--text-tokenizer"), ("speech_tokenizer", "--speech-tokenizer")):
        with pytest.raises(UserError) as error:
            look(path, tmp_path / "out", console, **{option: sample / option})
        assert "is not the tokenizer that the data set 'random' was made with" in str(error.value)
        assert what in str(error.value)
        shutil.copytree(sample / option, path.parent / option)
        with pytest.raises(UserError, match="is not the tokenizer"):
            look(path, tmp_path / "out", console)
        shutil.rmtree(path.parent / option)
    # A tokenizer next to the data that this version does not know: only the audio is missing.
    (path.parent / "speech_tokenizer").mkdir()
    (path.parent / "speech_tokenizer" / "speech_tokenizer.json").write_text('{"name": "of the future"}')
    look(path, tmp_path / "out", console)
    assert "of the future" in printed() and "No audio" in printed()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server that has one empty bucket, named bucket."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in (
        ("S3_ENDPOINT_URL", address),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def test_a_set_in_a_bucket(bucket: Any, sample: Path, tmp_path: Path, console: Console, printed: Printed) -> None:
    for folder in ("heldout_voices", "text_tokenizer", "speech_tokenizer"):
        for path in (sample / folder).iterdir():
            bucket.upload_file(str(path), "bucket", f"stories/{folder}/{path.name}")
    options = {"records": 1, "sequence_length": 100, "audio_seconds": 1.0}
    look("s3://bucket/stories/heldout_voices", tmp_path / "remote", console, **options)
    remote = printed()
    assert "Statistics of 20 of 20 records" in remote
    local = Console(file=io.StringIO(), width=80)
    look(sample / "heldout_voices", tmp_path / "local", local, **options)
    assert isinstance(local.file, io.StringIO)
    shown = remote[remote.index("\nRecord 10") : remote.index("\nStatistics")]
    assert "[" in shown and shown in local.file.getvalue()
    (far,), (near,) = (list((tmp_path / name).glob("*.wav")) for name in ("remote", "local"))
    assert far.read_bytes() == near.read_bytes()


@pytest.mark.parametrize(("num_files", "num_bytes"), [(101, 1), (2, 60_000)])
def test_a_bucket_with_more_than_tokenizers_have(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_files: int, num_bytes: int
) -> None:
    monkeypatch.setattr("tolktrain.inspect.tokenizers._MOST_BYTES", 100_000)
    for number in range(num_files):
        bucket.put_object(Bucket="bucket", Key=f"many/speech_tokenizer/{number}", Body=bytes(num_bytes))
    with pytest.raises(UserError, match="101 files of tokenizers|more than the 40000 bytes"):
        fetch_tokenizers("s3://bucket/many/train", tmp_path / "cache")
    kept = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(kept) <= 100_000 and len(kept) <= 100


def test_a_bucket_that_does_not_exist(bucket: Any, tmp_path: Path, console: Console) -> None:
    with pytest.raises(UserError, match="s3://elsewhere/train"):
        look("s3://elsewhere/train", tmp_path / "out", console)


@pytest.mark.parametrize("leaving_kib", [0, 150])
def test_a_full_disk_keeps_what_was_there(
    sample: Path, console: Console, make_disk: MakeDisk, leaving_kib: int
) -> None:
    disk = make_disk(4 << 10)
    output = disk.path / "out"
    output.mkdir()
    (output / "statistics.json").write_text("{}")
    options = {"statistics_records": 3, "sequence_length": 80, "audio_seconds": 4.0, "records": 3}
    disk.refuses(
        lambda: look(sample / "heldout_voices", output, console, **options),
        f"'{disk.path}/.inspect-.*/(statistics.png|record-.*wav)'",
        leaving_kib,
    )
