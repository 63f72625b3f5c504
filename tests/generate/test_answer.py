"""Prompts of the command line and of JSON lines: what is read, drawn, shown and written."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from tolktrain import cli
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.generate.answer import Answering, answer
from tolktrain.generate.continuation import Limits
from tolktrain.generate.requests import Request, read_requests, request
from tolktrain.generate.settings import Drawing
from tolktrain.units.base import collapse
from tolktrain.units.load import load_speech_tokenizer

SHORT = Answering(limits=Limits(12, utterances=1))


@pytest.fixture
def prompt_file(repository: Path, tmp_path: Path) -> Path:
    """A spoken prompt in another rate and format, one second long."""
    samples, rate = soundfile.read(next((repository / "data" / "sample" / "prompts").glob("*.wav")))
    assert rate == 16_000
    file = tmp_path / "prompt.flac"
    soundfile.write(file, samples[:rate], rate)
    return file


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "continuations.jsonl").read_text().splitlines()]


def _first_codebook(line: dict[str, Any]) -> str:
    return "".join(f"{frame[0]} " for frame in line["units"])


def _answered(run: Path, requests: list[Request], options: Answering) -> tuple[list[dict[str, Any]], str]:
    shown: list[str] = []
    answer(run, requests, options, shown.append)
    return _lines(options.into) if options.into is not None else [], "".join(shown)


@pytest.mark.slow
def test_four_directions(tiny_run: Path, prompt_file: Path, tmp_path: Path) -> None:
    """Each prompt alone and all of them together give the same; what is shown is what is written."""
    file = tmp_path / "prompts.jsonl"
    prompts = [
        {"text": "the little bird"},
        {"text": "the little bird", "to": "speech", "name": "read"},
        {"audio": prompt_file.name, "ends_utterance": True},
        {"audio": prompt_file.name, "to": "text"},
        {"units": [3, 141, 59]},
        {"units": [[3], [141]], "to": "text"},
    ]
    file.write_text("\n\n".join(json.dumps(prompt) for prompt in prompts))
    requests = list(read_requests(str(file), None, False))
    together, _ = _answered(tiny_run, requests, replace(SHORT, batch_size=6, into=tmp_path / "together"))
    alone, shown = _answered(tiny_run, requests, replace(SHORT, into=tmp_path / "alone"))
    key = lambda line: line["name"]  # noqa: E731
    for one, other in zip(sorted(alone, key=key), sorted(together, key=key), strict=True):
        assert one | {"timing": 0} == other | {"timing": 0}
    assert [line["to"] for line in alone] == ["text", "speech", "speech", "text", "speech", "text"]
    assert alone[1]["name"] == "read" and alone[0]["name"] == "line-1"
    written = [printable(line["text"]) if line["to"] == "text" else _first_codebook(line) for line in alone]
    assert shown == "".join(f"{line['name']}: {text}\n" for line, text in zip(alone, written, strict=True))
    for line in alone:
        if line["to"] == "speech":
            audio, rate = soundfile.read(tmp_path / "alone" / line["file"])
            assert rate == 16_000 and len(audio) / rate == pytest.approx(line["audio_seconds"], abs=1e-3)
        assert line["timing"]["seconds"] >= line["timing"]["first_position_seconds"] >= 0
    assert json.loads((tmp_path / "alone" / "settings.json").read_text())["step"] == 2


def test_audio_is_its_units(tiny_run: Path, prompt_file: Path, repository: Path, tmp_path: Path) -> None:
    tokenizer = load_speech_tokenizer(repository / "data" / "sample" / "speech_tokenizer")
    samples = soundfile.read(prompt_file, dtype="float32")[0]
    units = collapse(tokenizer.encode(samples))[0].tolist()
    found = []
    for number, (kind, content) in enumerate((("audio", str(prompt_file)), ("units", units))):
        given = [request(kind, content, "text", True, "x", "--x")]  # type: ignore[arg-type]
        found.append(_answered(tiny_run, given, replace(SHORT, into=tmp_path / str(number)))[0][0])
    assert found[0]["ids"] == found[1]["ids"]
    assert found[0]["timing"]["prompt_positions"] == len(units) + 2, "units, EOS and switch"


def test_samples_seed_and_stops(tiny_run: Path, tmp_path: Path) -> None:
    given = [request("text", "the little bird", None, False, "x", "--text")]
    options = replace(SHORT, num_samples=3, drawing=Drawing(seed=7), into=tmp_path / "a")
    first, _ = _answered(tiny_run, given, options)
    assert len({str(line["ids"]) for line in first}) == 3
    alone, _ = _answered(tiny_run, given, replace(options, num_samples=1, into=tmp_path / "b"))
    assert alone[0]["ids"] == first[0]["ids"]
    greedy, _ = _answered(
        tiny_run, given, replace(options, drawing=Drawing(temperature=0.0, seed=7), into=tmp_path / "c")
    )
    assert len({str(line["ids"]) for line in greedy}) == 1
    whole = first[0]["text"]
    stop = whole[len(whole) // 2 :][:2]
    limits = replace(SHORT.limits, stops=(stop,))
    stopped, _ = _answered(tiny_run, given, replace(options, num_samples=1, limits=limits, into=tmp_path / "d"))
    assert stopped[0]["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("parts", "stops", "expected"),
    [
        (["the bird", "a tree"], (), "the bird a tree"),
        (["", " sang"], (), " sang"),
        (["the bird", " sang", "", "é"], (), "the bird sang é"),
        (["the bird", "a tree"], ("d a",), "the bir"),
        (["the bird", "a tree"], ("tree!", "e b", "x"), "th"),
        (["the bird"], ("birds",), "the bird"),
    ],
)
def test_utterances_of_text(
    tiny_run: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: list[str],
    stops: tuple[str, ...],
    expected: str,
) -> None:
    """A blank is between them, and a text ends before a stop, both in the file and as it is shown."""
    tokenizer = load_text_tokenizer(repository / "data" / "sample" / "text_tokenizer").tokenizer
    ids = [token for part in parts for token in [*tokenizer.encode(part).ids, 0]]

    def drawn(decoder: Any, contexts: Any, vocabulary: Any, settings: Any, limits: Any, streams: Any, note: Any) -> Any:
        for token in ids:
            note(0, np.array([token]))
        return [ids]

    monkeypatch.setattr("tolktrain.generate.continuation.sample_text", drawn)
    options = replace(SHORT, limits=Limits(99, utterances=9, stops=stops), into=tmp_path / "out")
    lines, shown = _answered(tiny_run, [request("text", "x", None, False, "x", "--text")], options)
    assert lines[0]["text"] == expected and shown == f"x: {expected}\n"


def test_speech_of_some_seconds(tiny_run: Path, tmp_path: Path) -> None:
    limits = Limits(200, seconds=0.5, utterances=9)
    given = [request("units", [1, 2], None, False, "x", "--units")]
    (line,), _ = _answered(tiny_run, given, replace(SHORT, limits=limits, into=tmp_path / "a"))
    assert 0.5 <= line["audio_seconds"] < 1.0 and len(line["units"]) < 200


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"is not JSON"),
        ('{"text": "\\ud800"}', r"text is not UTF-8"),
        ('{"audio": "a\\u0000"}', r"audio is not UTF-8 or contains the character NUL"),
        ("[1]", r"one of the keys text, audio and units"),
        ('{"text": "a", "units": [1]}', r"one of the keys"),
        ('{"text": 3}', r"text is 3; expected some text"),
        ('{"text": ""}', r"text is empty"),
        ('{"text": "a", "two": 1}', r"the key 'two' is unknown"),
        ('{"text": "a", "to": "song"}', r"to is 'song'; use text or speech"),
        ('{"text": "a", "ends_utterance": 1}', r"ends_utterance is 1"),
        ('{"text": "a", "name": "../x"}', r"climbs"),
        ('{"text": "a", "name": "b/x"}', r"the name 'b/x' has a slash; files are named after it"),
        ('{"text": "a", "name": "' + "é" * 101 + '"}', r"is longer than 200 bytes"),
        ('{"text": "a", "name": 7}', r"the name 7 is not text"),
        ('{"text": "a", "name": "line-1"}', r"used before"),
        ('{"units": 5}', r"units is 5"),
        ('{"units": [1, -2]}', r"units holds \[-2\]"),
        ('{"units": [99999999999999999999]}', r"units holds \[9+\]"),
        ('{"units": [[1], [1, 2]]}', r"frames of 1 and of 2 codebooks"),
        ('{"units": []}', r"units is empty"),
    ],
)
def test_lines_that_are_no_prompts(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(UserError, match=rf"x\.jsonl, line 2.*{message}"):
        list(read_requests(str(tmp_path / "x.jsonl"), None, False))


def test_prompts_that_the_model_cannot_read(tiny_run: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    cases: list[tuple[Any, Any, str]] = [
        ("units", [500], "the unit 500 is outside the model's 500 units"),
        ("units", [[1, 2]], "units of 2 codebooks, the model has 1"),
        ("units", [1, 2] * 97, "the prompt has 194 positions, and the context .* is 192"),
        ("audio", str(tmp_path / "empty.wav"), "holds no audio"),
        ("audio", str(tmp_path / "none.wav"), "expected WAV, FLAC or MP3"),
    ]
    for kind, content, message in cases:
        given = [request(kind, content, None, False, "x", "--x")]
        with pytest.raises(UserError, match=message):
            answer(tiny_run, given, replace(SHORT, into=tmp_path / "out"), lambda text: None)
        assert not (tmp_path / "out").exists()


def test_a_bad_line_in_the_middle(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is read before anything is drawn; standard input is continued as it comes, until the bad line."""
    content = b'{"text": "the bird"}\r\n{"text": \r\n{"text": "the"}\r\n'
    (tmp_path / "x.jsonl").write_bytes(content)
    command = ["generate", str(tiny_run), "--length", "2", "--into", str(tmp_path / "out"), "--prompts"]
    assert cli.main([*command, str(tmp_path / "x.jsonl")]) == 2
    found = capsys.readouterr()
    assert "x.jsonl, line 2 is not JSON" in found.err and found.out == "" and not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert cli.main([*command, "-"]) == 2
    found = capsys.readouterr()
    assert "standard input, line 2 is not JSON" in found.err and found.out.startswith("line-1: ")
    assert [line["name"] for line in _lines(tmp_path / "out")] == ["line-1"]


@pytest.mark.parametrize("content", [b"", b"\n  \n\n"])
def test_no_prompt(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(UserError, match="standard input holds no prompt"):
        answer(tiny_run, read_requests("-", None, False), SHORT, lambda text: None)


def test_a_prompt_of_one_token_and_one_that_fills_the_context(tiny_run: Path, tmp_path: Path) -> None:
    given = [
        request("units", [7], None, False, "one", "--units"),
        request("text", "a", None, False, "letter", "--text"),
        request("units", [1, 2] * 96, None, False, "full", "--units"),
    ]
    lines, _ = _answered(tiny_run, given, replace(SHORT, into=tmp_path / "out"))
    assert [line["timing"]["prompt_positions"] for line in lines] == [1, 1, 192]
    assert all(line.get("units") or line.get("ids") for line in lines)


def test_command_line(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts from standard input and from options; mistakes of options."""
    named = tiny_run.parent / "named.jsonl"
    named.write_text('{"text": "a", "name": "text-1"}')
    lines = io.BytesIO(b'{"units": [7, 8], "name": "in"}\n')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=lines))
    arguments = ["generate", str(tiny_run), "--text", "the bird", "--prompts", "-", "--length", "5", "--seed", "1"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("text-1: ") and "\nin: " in out
    into = tiny_run.parent / "out"
    text = ["generate", str(tiny_run), "--text", "the bird", "--length", "9", "--seed", "1", "--into"]
    assert cli.main([*text, str(into / "whole")]) == 0
    whole = _lines(into / "whole")[0]["text"]
    stop = whole[3:5]
    assert cli.main([*text, str(into / "cut"), "--stop", stop, "--stop", "never in it"]) == 0
    assert _lines(into / "cut")[0]["text"] == whole[: whole.index(stop)]
    shown_whole, shown = capsys.readouterr().out.splitlines()
    assert shown_whole == f"text-1: {printable(whole)}" and shown == f"text-1: {printable(whole[: whole.index(stop)])}"
    for options, message in (
        (["--top-k", "5"], "--top-k belongs to prompts"),
        (["--text", "a", "--top-p", "3"], "--top-p is 3.0; expected 1e-06 to 1.0"),
        (["--units", "1 b"], "'1 b' is no list of units"),
        (["--text", "a", "--prompts", str(named)], "the name 'text-1' was used before"),
        (["--text", "a", "--step", "9"], "no checkpoint of step 9"),
        (["--text", "a", "--stop", "b", "--stop", ""], "--stop is empty"),
        (["--text", "a", "--into", str(tiny_run)], "is not an empty folder"),
    ):
        assert cli.main(["generate", str(tiny_run), *options]) == 2
        assert message in capsys.readouterr().err
