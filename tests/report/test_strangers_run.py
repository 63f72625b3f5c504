"""A run directory whose every text was chosen to become markup, a script, or an order to the terminal."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from parsed_page import Page
from synthetic_run import benchmarks, comparison, evaluation, generation, sweep, text_tasks, write_samples

from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.report.page import render
from tolktrain.report.run import report
from tolktrain.report.rundata import read_run

PIECES = [
    '"', "'", "<", ">", "&", "/", "=", " ", "\\1", "\\g<0>", "\\", "]]>", "-->", "<!--", "<script>alert(1)</script>",
    "</text></svg>", "</title>", "</style>", 'x" onload="alert(1)', "<img src=x onerror=alert(1)>",
    "javascript:alert(1)", "&#34;", "&lt;", "{{ 7 * 7 }}", "{% raw %}", "$x^{", "$$",
    "%s", "{0}", "#2b6cd4", 'height="', "<metadata>",
    "\x1b[2J", "\x9b31m", "\u202e", "\ud800", "\x00", "[/x]", "[bold]", "[link=file:///etc/passwd]", "a", "ü",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)

KEPT = ("run", "set", "stage", "target", "transcript", "continuation", "voice", "device", "strategy")


def write_run(folder: Path, names: dict[str, str]) -> Path:
    """A run of a few steps with the texts at each place."""
    folder.mkdir()
    # Configurations with these are refused.
    names = names | {name: names[name].translate({0: None, 0xD800: None}) or "x" for name in ("run", "voice")}
    run = {"run": {"name": names["run"]}, "evaluation": {}, names["voice"]: names["run"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {"step": step, "stage": names["stage"], "tokens": step, "loss": 2.0, "text_loss": 2.0, "learning_rate": 1e-3}
        for step in range(1, 5)
    ]
    rows[-1][f"validation.text.{names['set']}.loss"] = 1.5
    rows[-1][f"validation.interleaved.{names['set']}.text_loss"] = 1.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured: dict[str, Any] = evaluation() | {"device": names["device"]}
    for part in ("losses", "choices", "targets"):
        for row in measured[part]:
            row["set"] = names["set"]
    measured["losses"][-1]["strategy"] = names["strategy"]
    for row in measured["targets"]:
        row["statement"] = names["target"]
    (folder / "evaluation.json").write_text(json.dumps(measured))
    scored = benchmarks() | {"notes": [names["target"]]}
    scored["rows"][0] |= {"set": names["set"], "rule": names["strategy"], "measure": names["device"]}
    (folder / "benchmarks.json").write_text(json.dumps(scored))
    spoken = generation() | {"asr": {"folder": names["voice"]}}
    spoken["settings"] |= {"folder": names["set"]}
    spoken["rows"][0]["kind"] = names["stage"]
    (folder / "generation.json").write_text(json.dumps(spoken))
    texts = text_tasks() | {"run": names["run"], "against": names["device"], "harness": names["strategy"]}
    texts["rows"][0] |= {"task": names["target"], "metric": names["set"]}
    (folder / "text_tasks.json").write_text(json.dumps(texts))
    compared = comparison() | {"remarks": [names["transcript"]], "runs": [{"name": names["run"]}]}
    compared["benchmarks"][0] |= {"set": names["set"], "rule": names["strategy"]}
    compared["choices"][0] |= {"set": names["set"], "direction": names["device"]}
    (folder / "comparison").mkdir()
    (folder / "comparison" / "compare.json").write_text(json.dumps(compared))
    ablated = json.dumps(sweep()).replace("no-pooling", "NAME")
    (folder.parent / "table.json").write_text(ablated.replace("NAME", json.dumps(names["voice"])[1:-1]))
    (folder.parent / "sweep.json").write_text("{}")
    (folder / "analysis").mkdir()
    (folder / "analysis" / "analysis.json").write_text(json.dumps(analysis(names)))
    write_samples(folder)
    samples = json.loads((folder / "samples" / "samples.json").read_text())
    for prompt in samples["prompts"]:
        texts = {"text": names["transcript"], "text_continuation": names["continuation"], "voice": names["voice"]}
        prompt.update(texts)
    samples["temperature"] = names["device"]
    (folder / "samples" / "samples.json").write_text(json.dumps(samples))
    return folder


def analysis(names: dict[str, str]) -> dict[str, Any]:
    """An analysis with the texts at each place."""
    layers = [f"{names['stage']}{number}" for number in range(3)]
    curve = {"key": names["strategy"], "label": names["transcript"], "colour": "text", "is_control": False}
    panels = [{"title": names["target"], "scale": "share", "curves": [curve]}]
    numbers = {layer: {names["strategy"]: 0.25 * number} for number, layer in enumerate(layers)}
    numbers[layers[2]] = {names["strategy"]: names["device"]}  # where a number should be
    return {
        "step": 3,
        "sample": {"words": 100, "set": names["set"]},
        "layers": layers,
        "start": names["device"],
        "measures": {names["voice"]: {"title": names["target"], "panels": panels, "headline": []}},
        "models": {model: {names["voice"]: {"layers": numbers}} for model in ("trained", "start")},
    }


def _forms(page: str) -> set[tuple[str, tuple[str, ...]]]:
    """Elements with the names of their attributes."""
    return {(tag, tuple(sorted(attributes))) for tag, attributes in Page(page).elements}


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, tuple[str, ...]]]:
    names = {name: f"plain {name}" for name in KEPT}
    return _forms(render(read_run(write_run(tmp_path_factory.mktemp("plain") / "run", names))))


@given(st.fixed_dictionaries({name: hostile for name in KEPT}))
@example({name: "".join(PIECES) for name in KEPT})
@example({name: 'x" onload="document.title=1' for name in KEPT})
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.slow
def test_text_stays_text(
    harmless: set[tuple[str, tuple[str, ...]]], tmp_path_factory: pytest.TempPathFactory, names: dict[str, str]
) -> None:
    text = render(read_run(write_run(tmp_path_factory.mktemp("hostile") / "run", names)))
    text.encode()
    page = Page(text)
    assert page.open == []
    assert _forms(text) <= harmless
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None and value.startswith(("data:audio/wav;base64,", "#")), (tag, name, value)
    labels = [attributes["aria-label"] for _, attributes in page.elements if "aria-label" in attributes]
    assert f"Accuracy of true against random continuation on {printable(names['set'])}" in labels
    # html.parser takes characters that no page may hold out of text.
    for place in ("run", "set", "target", "transcript", "continuation", "voice", "device"):
        expected = printable(names[place])
        if place in ("run", "voice"):
            expected = expected.replace("\\x00", "").replace("\\ud800", "") or "x"
        assert _plain(expected) in page.text, place
    assert all(character.isprintable() or character == "\n" for character in text)


def test_policy_of_the_page_allows_no_script(full_run: Path) -> None:
    page = Page(render(read_run(full_run)))
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = {part.split()[0]: part.split()[1:] for part in str(*policies).split(";")}
    assert allowed["default-src"] == ["'none'"] and not [name for name in allowed if name.startswith("script")]
    assert allowed["img-src"] == allowed["media-src"] == ["data:"]
    # Nothing of the page comes before it.
    assert [tag for tag, _ in page.elements[:4]] == ["html", "head", "meta", "meta"]


def _set_file(run: Path, name: object) -> None:
    path = run / "samples" / "samples.json"
    content = json.loads(path.read_text())
    content["prompts"][0]["files"]["prompt"] = name
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../../secret", "{root}/secret", "link", "folder/link", "fifo", "device", ".", 7, None]
)
def test_only_files_of_the_run_are_put_into_the_page(full_run: Path, name: object) -> None:
    secret = full_run.parent / "secret"
    secret.write_text("a key of somebody's")
    samples = full_run / "samples"
    (samples / "link").symlink_to(secret)
    (samples / "folder").symlink_to(full_run.parent)
    (samples / "device").symlink_to("/dev/zero")
    os.mkfifo(samples / "fifo")
    _set_file(full_run, name.format(root=full_run.parent) if isinstance(name, str) else name)
    with pytest.raises(UserError, match="samples"):
        report(full_run)
    assert not (full_run / "report.html").exists()


def test_audio_has_a_limit(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tolktrain.report.page._MOST_AUDIO_BYTES", 300_000)
    with pytest.raises(UserError, match="audio in all"):
        render(read_run(full_run))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", '{"step": 1}\n7\n{"step": 2}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n{}\n"),
        ("config.yaml", "[" * 20_000),
        ("evaluation.json", "[" * 100_000),
        ("evaluation.json", "\ud800"),
    ],
)
def test_files_that_cannot_be_read(full_run: Path, file: str, content: str) -> None:
    (full_run / file).write_text(content, errors="surrogatepass")
    with pytest.raises(UserError, match=re.escape(file)):
        read_run(full_run)


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "evaluation.json", "samples/samples.json"])
def test_a_file_that_never_ends(full_run: Path, file: str) -> None:
    (full_run / file).unlink()
    os.mkfifo(full_run / file)
    with pytest.raises(UserError, match="not readable|cannot be read"):
        read_run(full_run)
