"""Generated speech: the measures by their definitions, the judges against transformers, and the whole command."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from judge_models import LETTERS, write_ctc, write_lm, write_whisper
from tiny_run import tiny_tree, write_run
from tokenizers import decoders

from tolktrain import cli
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.evaluate.generation import run as generation
from tolktrain.evaluate.generation.judges import Recognizer, TextJudge, cut_at_quiet
from tolktrain.evaluate.generation.measures import auto_bleu, word_edits, words_of
from tolktrain.evaluate.generation.recordings import read_recordings
from tolktrain.evaluate.generation.run import Options, evaluate_generation
from tolktrain.evaluate.generation.summary import SpokenItem, rows

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of speech recognition and language models."""
    root = tmp_path_factory.mktemp("judges")
    made = {"ctc": write_ctc(root / "ctc"), "whisper": write_whisper(root / "whisper")}
    return made | {"gpt2": write_lm(root / "gpt2", bos=False), "llama": write_lm(root / "llama", bos=True)}


@pytest.fixture
def speaking_run(tmp_path: Path, repository: Path) -> Path:
    """A run that has learned to read aloud, or at least was meant to."""
    tree = tiny_tree(tmp_path, repository)
    tree["train"]["stages"][1]["mixture"]["synthesis"] = {"sets": {"stories": 1}}
    return write_run(tmp_path, tree)


def test_repetition_by_its_definition() -> None:
    assert auto_bleu(["a", "b", "a", "b", "a", "b"]) == 1.0
    assert auto_bleu(["a", "b", "c", "d"]) == auto_bleu(["a"]) == auto_bleu([]) == 0.0
    rng = np.random.default_rng(0)
    for order in (1, 2, 3):
        words = [str(number) for number in rng.integers(0, 4, 12)]
        grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
        expected = np.mean([any(a == b for j, b in enumerate(grams) if j != i) for i, a in enumerate(grams)])
        assert auto_bleu(words, order) == pytest.approx(expected)


def _levenshtein(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        _levenshtein(one[1:], other) + 1,
        _levenshtein(one, other[1:]) + 1,
        _levenshtein(one[1:], other[1:]) + (one[0] != other[0]),
    )


def test_errors_of_words() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        one, other = (tuple(rng.choice(list("abc"), rng.integers(0, 6))) for _ in range(2))
        assert word_edits(one, other) == _levenshtein(one, other)
    assert words_of("Don\u2019t -- \u00c9clair, 2 o'clock 'tis!") == ["don't", "\u00e9clair", "2", "o'clock", "tis"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_likelihood_of_a_text_is_the_models_loss(judges: dict[str, Path], name: str) -> None:
    """BOS is not scored, but the first byte after it; without BOS, the first byte is not scored."""
    from transformers import AutoModelForCausalLM

    text = "Mia lost a red ball."
    nll, tokens = TextJudge(judges[name], "cpu").nll(text)
    assert tokens == len(text) - (name == "gpt2")
    model = AutoModelForCausalLM.from_pretrained(judges[name]).eval()
    alphabet = json.loads((judges[name] / "tokenizer.json").read_text())["model"]["vocab"]
    ids = [256] * (name == "llama") + [alphabet["\u0120" if letter == " " else letter] for letter in text]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert nll / tokens == pytest.approx(float(loss), rel=1e-5)
    assert TextJudge(judges[name], "cpu").nll("") == (0.0, 0)


def _noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(16_000 * seconds))).astype(np.float32)


def test_letters_are_heard_by_greedy_decoding(judges: dict[str, Path]) -> None:
    from transformers import Wav2Vec2ForCTC

    samples = _noise(1.2)
    with torch.no_grad():
        normalized = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        ids = Wav2Vec2ForCTC.from_pretrained(judges["ctc"]).eval()(normalized[None]).logits[0].argmax(-1).tolist()
    kept = [one for place, one in enumerate(ids) if place == 0 or ids[place - 1] != one]
    expected = "".join(" " if LETTERS[one] == "|" else LETTERS[one] for one in kept if one)
    heard = Recognizer(judges["ctc"], "cpu").transcribe(samples, 16_000)
    assert len(set(expected)) > 3
    assert heard == expected.strip().lower()


def test_whisper_writes_its_likeliest_tokens(judges: dict[str, Path]) -> None:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    samples = _noise(2.0, 3)
    features = WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_features
    model = WhisperForConditionalGeneration.from_pretrained(judges["whisper"]).eval()
    ids = [256]
    with torch.no_grad():
        while len(ids) < 11 and (len(ids) == 1 or ids[-1] != 256):
            ids.append(int(model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    vocabulary = json.loads((judges["whisper"] / "tokenizer.json").read_text())["model"]["vocab"]
    letters = {place: letter for letter, place in vocabulary.items()}
    written = [letters[one] for one in ids if one != 256]
    expected = {decoders.ByteLevel().decode(written[:count]).strip() for count in (9, 10)}  # of version 4 and 5
    assert len(written) > 2
    assert Recognizer(judges["whisper"], "cpu").transcribe(samples, 16_000) in expected


def test_long_audio_is_cut_at_quiet_places() -> None:
    rate = 1000
    samples = np.ones(70 * rate, np.float32)
    samples[28 * rate : 28 * rate + 40] = 0.0
    samples[55 * rate : 55 * rate + 40] = 0.0
    windows = cut_at_quiet(samples, rate)
    assert np.concatenate(windows).tolist() == samples.tolist()
    assert all(len(window) <= 30 * rate for window in windows)
    cuts = np.cumsum([len(window) for window in windows])[:-1] / rate
    assert len(cuts) == 2 and np.all(np.abs(cuts - [28.0, 55.0]) <= 0.04)


def _check_rows(found: dict[str, Any], items: list[dict[str, Any]]) -> None:
    """The rows from the items, by the definitions."""
    for row in found["rows"]:
        own = [item for item in items if item["kind"] == row["kind"]]
        assert row["samples"] == len(own)
        means = [item["nll"] / item["tokens"] for item in own if item["tokens"]]
        assert row["genppl"] == pytest.approx(np.exp(np.mean(means)))
        assert row["genppl_low"] <= row["genppl"] <= row["genppl_high"]
        assert row["auto_bleu"] == pytest.approx(np.mean([auto_bleu(words_of(i["transcript"])) for i in own]))
        assert row["seconds"] == pytest.approx(np.mean([item["seconds"] for item in own]))
        if row["kind"] in ("generated", "bigram"):
            assert "wer" not in row
        else:
            assert row["wer"] == pytest.approx(sum(i["edits"] for i in own) / sum(i["words"] for i in own))


@pytest.mark.slow
def test_the_whole_command(
    speaking_run: Path,
    judges: dict[str, Path],
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folder = speaking_run / "recordings"
    folder.mkdir()
    for number, text in enumerate(("Mia went home.", "The ball.", "Ben ran"), start=1):
        (folder / f"{number}.wav").symlink_to(repository / "data" / "sample" / "prompts" / f"prompt-{number}.wav")
        (folder / f"{number}.txt").write_text(text)
    words = ["--generation", folder, "--asr", judges["ctc"], "--lm", judges["llama"]]
    options = ["--recordings", "2", "--units", "12", "--prompt-seconds", "0.5"]
    assert cli.main(["evaluate", *map(str, (speaking_run, *words, *options))]) == 0
    printed = capsys.readouterr().out
    for name in ("GenPPL", "auto-BLEU", "the model's", "a bigram's", "text read", "from units", "recording"):
        assert name in printed
    found = json.loads((speaking_run / "generation.json").read_text())
    lines = (speaking_run / "scores" / "generation" / "items.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines[1:]]
    assert [row["kind"] for row in found["rows"]] == ["generated", "bigram", "synthesis", "resynthesis", "recording"]
    assert len(items) == 10
    _check_rows(found, items)
    assert all(item["units"] <= 12 and item["seconds"] > 0 for item in items if item["kind"] == "generated")
    heard = Recognizer(judges["ctc"], "cpu")
    for item in items:
        if item["kind"] == "recording":
            samples, rate = soundfile.read(folder / item["id"], dtype="float32")
            assert item["transcript"] == heard.transcribe(samples, rate)
            assert item["seconds"] == pytest.approx(len(samples) / rate)
        text = item["transcript"]
        assert (item["nll"], item["tokens"]) == pytest.approx(TextJudge(judges["llama"], "cpu").nll(text))

    # Neither the batch nor the number of ranks matters.
    settings = Options(folder, recordings=3, units=9, prompt_seconds=0.5)
    alone = evaluate_generation(speaking_run, settings)
    assert "genppl" not in alone["rows"][0] and "auto_bleu" not in alone["rows"][0]
    expected = (speaking_run / "scores" / "generation" / "items.jsonl").read_text().splitlines()[1:]
    evaluate_generation(speaking_run, replace(settings, batch=1))
    assert (speaking_run / "scores" / "generation" / "items.jsonl").read_text().splitlines()[1:] == expected
    for rows_of_rank in _on_two_ranks(speaking_run, settings, monkeypatch):
        assert rows_of_rank == alone["rows"]


def _on_two_ranks(run: Path, settings: Options, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The rows on each of two ranks, which are threads here."""
    barrier = threading.Barrier(2, timeout=240)
    given: dict[int, object] = {}
    rank = threading.local()

    def gather(value: object) -> list[object]:
        given[rank.number] = value
        barrier.wait()
        both = [given[0], given[1]]
        barrier.wait()
        return both

    environment = ProcessEnvironment.detect()
    monkeypatch.setattr(generation, "all_gather_objects", gather)
    monkeypatch.setattr(generation, "on_rank_zero", lambda _, action: action())
    monkeypatch.setattr(
        ProcessEnvironment, "detect", staticmethod(lambda: replace(environment, rank=rank.number, world_size=2))
    )
    monkeypatch.setattr(ProcessEnvironment, "export", lambda self: None)
    monkeypatch.setattr(generation, "initialize", lambda timeout: None)
    found: dict[int, list[dict[str, Any]]] = {}

    def work(number: int) -> None:
        rank.number = number
        found[number] = evaluate_generation(run, settings)["rows"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]


def test_silence_is_counted_and_no_number() -> None:
    """An empty transcript has no perplexity; slamkit's mean becomes NaN."""
    silent = SpokenItem("a", "generated", 1.0, 20, "", 0.0, 0.0, 0)
    spoken = SpokenItem("b", "generated", 3.0, 40, "a b a b", 1.0, 8.0, 4)
    (row,) = rows([silent, spoken])
    assert (row["empty"], row["unscored"], row["samples"]) == (1, 1, 2)
    assert row["genppl"] == pytest.approx(np.exp(2.0)) and row["auto_bleu"] == 0.5
    assert (row["seconds"], row["units_per_second"]) == (2.0, 15.0)
    (row,) = rows([silent])
    assert row["genppl"] is None and row["genppl_low"] is None


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"RIFF")


def test_recordings_and_their_transcripts(tmp_path: Path, repository: Path) -> None:
    _touch(tmp_path, "2_s_correct.wav", "10_t_correct.wav", "3_s_incorrect.wav")
    assert [recording.id for recording in read_recordings(tmp_path, 9)] == ["2_s_correct.wav", "10_t_correct.wav"]
    books = tmp_path / "books"
    _touch(books, "b/1-2-0001.flac", "b/1-2-0000.flac", "a.wav")
    (books / "b" / "1-2.trans.txt").write_text("1-2-0000 ONE\n1-2-0001 TWO WORDS\n")
    (books / "a.txt").write_text(" three\n")
    first = read_recordings(repository / "data" / "sample" / "prompts", 1)[0]
    assert first.id == "prompt-1.wav" and first.text is not None and len(first.text.split()) > 3
    found = [(recording.id, recording.text) for recording in read_recordings(books, 9)]
    assert found == [("a.wav", "three"), ("b/1-2-0000.flac", "ONE"), ("b/1-2-0001.flac", "TWO WORDS")]
    assert len(read_recordings(books, 2)) == 2
    (books / "b" / "other.trans.txt").write_text("1-2-0001 AGAIN\n")
    with pytest.raises(UserError, match="other.trans.txt: 1-2-0001 has two transcripts"):
        read_recordings(books, 9)
    _touch(books, "a.flac")
    with pytest.raises(UserError, match=r"a\.(wav|flac) and a\.(wav|flac) are the same recording twice"):
        read_recordings(books, 9)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no recording"):
        read_recordings(empty, 9)


def test_recordings_that_cannot_be_read(speaking_run: Path, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    _touch(folder, "broken.wav")
    (folder / "good.wav").symlink_to(repository / "data" / "sample" / "prompts" / "prompt-1.wav")
    settings = Options(folder, units=3, prompt_seconds=0.5)
    with pytest.raises(UserError, match=r"1 unreadable \(.*broken.wav.*--allow-incomplete"):
        evaluate_generation(speaking_run, settings)
    assert not (speaking_run / "generation.json").exists()
    found = evaluate_generation(speaking_run, replace(settings, allow_incomplete=True))
    assert found["unreadable"] == 1 and found["rows"][0]["samples"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--asr", "."], "--asr concerns generated speech"),
        (["--generation", ".", "--lm", "."], "--lm judges transcripts; name a model of speech recognition"),
        (["--generation", "nowhere"], "nowhere is no folder; it should hold recordings"),
        (["--generation", ".", "--benchmarks", "sblimp=."], "exclude each other"),
        (["--generation", ".", "--units", "0"], "--units is 0; expected 1 to"),
        (["--generation", "PROMPTS", "--asr", "nowhere"], "--asr: nowhere is no folder; it should hold a model"),
        (["--generation", "PROMPTS", "--asr", "GPT2"], "describes no model of the classes ...ForCTC or"),
        (
            ["--generation", "PROMPTS", "--asr", "CTC", "--lm", "CTC"],
            "describes no model of the classes ...ForCausalLM",
        ),
    ],
)
def test_bad_command_lines(
    speaking_run: Path,
    judges: dict[str, Path],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(speaking_run)
    known = {"PROMPTS": repository / "data" / "sample" / "prompts", "GPT2": judges["gpt2"], "CTC": judges["ctc"]}
    assert cli.main(["evaluate", str(speaking_run), *(str(known.get(word, word)) for word in options)]) == 2
    assert message in capsys.readouterr().err


def test_a_judge_that_is_incomplete(judges: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(judges["ctc"], tmp_path / "ctc")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="ctc lacks what AutoFeatureExtractor reads"):
        Recognizer(folder, "cpu")
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match="cannot be loaded as Wav2Vec2ForCTC"):
        Recognizer(folder, "cpu")
