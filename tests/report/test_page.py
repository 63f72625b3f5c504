"""The page is parsed as a browser would: pictures, audio, tables, and nothing from outside."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import soundfile
import yaml
from parsed_page import Page
from small_disk import MakeDisk
from synthetic_run import SETS, benchmarks, comparison, generation, sweep, text_tasks

from tolktrain.errors import UserError
from tolktrain.report.ablations import sweep_file
from tolktrain.report.page import count, duration, loss_table, render
from tolktrain.report.results import result_sections
from tolktrain.report.run import report
from tolktrain.report.rundata import read_run


def _svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)]


def test_page_is_whole_and_loads_nothing(full_run: Path) -> None:
    text = render(read_run(full_run))
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.elements:
        assert tag not in ("link", "script", "iframe", "object", "embed", "base"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "poster", "data", "xlink:href"):
                assert value is not None and value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_picture_is_drawn_with_the_colours_of_the_page(full_run: Path) -> None:
    text = render(read_run(full_run))
    svgs = _svgs(text)
    assert len(svgs) == 1 + 2 + 1 + 2  # losses, choices of two sets, layers, rates and throughput
    for svg in svgs:
        shapes = [element for element in svg.iter() if element.tag.endswith(("path", "text"))]
        assert len(shapes) > 10
        assert svg.get("viewBox") and svg.get("aria-label") and svg.get("width") is None
    colours = set(re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL))))
    assert colours <= {"#000000", "#ffffff"}
    for variable in set(re.findall(r"var\((--[a-z]+)\)", text)):
        assert len(re.findall(rf"{variable}: #", text)) >= 1, variable


def test_every_player_plays_the_file(full_run: Path) -> None:
    run = read_run(full_run)
    players = [a["src"] for tag, a in Page(render(run)).elements if tag == "audio"]
    assert run.samples is not None
    files = [
        prompt["files"][part] for prompt in run.samples["prompts"] for part in ("prompt", "resynthesis", "continuation")
    ]
    assert len(players) == len(files) == 9
    for source, name in zip(players, files, strict=True):
        assert source is not None and source.startswith("data:audio/wav;base64,")
        content = base64.b64decode(source.split(",", 1)[1], validate=True)
        assert content == (full_run / "samples" / name).read_bytes()
        waveform, rate = soundfile.read(io.BytesIO(content))
        assert rate == 22_050 and len(waveform) > rate


def test_figures_and_statements_are_on_the_page(full_run: Path) -> None:
    page = Page(render(read_run(full_run)))
    for expected in (
        "3.3 M", "4.92 M", "8 min", "1.710", "bigram 2.300", "✗ missed", "✓ reached", "heldout_voices", "0.74",
        "Anna had a little red boat & a <blue> kite.", "Sampled at temperature 0.8 from the 50 most likely units",
        "93.0 %", "chance", "selector, speech", "after adapter",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_benchmarks_have_a_table(full_run: Path) -> None:
    assert "Benchmarks" not in render(read_run(full_run))
    (full_run / "benchmarks.json").write_text(json.dumps(benchmarks() | {"rows": []}))
    assert "Benchmarks" not in render(read_run(full_run))
    (full_run / "benchmarks.json").write_text(json.dumps(benchmarks()).replace("gold.csv", "<i>gold</i>"))
    text = render(read_run(full_run))
    table = text[text.index("<h2>Benchmarks</h2>") : text.index("<h2>Losses</h2>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    names = ["sblimp", "dev", "mean over pairs"]
    assert rows == [
        ["benchmark", "split", "aggregation", "rule", "accuracy", "95 % interval", "ties", "ids", "unigram", "bigram"],
        [*names, "whole_mean_closing_eos", "62.5", "41.0 – 83.8", "0.5", "20", "50.0", "51.2"],
        ["", "", "Slam (slamkit)", "the same", "58.86", "", "", "", "", ""],
        [*names, "whole_mean", "60.0", "41.0 – 83.8", "0.5", "20", "–", "–"],
    ]
    page = Page(text)
    assert page.open == [] and "at step 1200" in page.text
    for remark in ("sblimp: 2 missing", "sblimp: 3 items are longer", "test: <i>gold</i> is missing"):
        assert remark in page.text


def _tables(text: str, title: str) -> list[list[str]]:
    section = text[text.index(f"<h2>{title}</h2>") :]
    section = section[: section.index("<h2>", 4)]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)]


def test_generated_speech_text_tasks_and_comparison_have_tables(full_run: Path) -> None:
    for name, content in (("generation", generation()), ("text_tasks", text_tasks())):
        (full_run / f"{name}.json").write_text(json.dumps(content))
    (full_run / "comparison").mkdir()
    (full_run / "comparison" / "compare.json").write_text(json.dumps(comparison()))
    text = render(read_run(full_run))
    assert _tables(text, "Generated speech")[1:] == [
        ["the model&#39;s", "40", "62.8 (50.0 – 80.0)", "3.5 (2.0 – 5.0)", "–", "5.50", "21.0"],
        ["recording", "40", "–", "–", "12.5 (10.0 – 15.0)", "9.00", "–"],
    ]
    assert _tables(text, "Text tasks")[1] == [
        *("piqa", "acc_norm", "100", "61.0", "50.0 – 70.0", "66.0", "-5.0", "-11.0 – +1.0", "3", "8", "0.23")
    ]
    assert _tables(text, "Comparison with other runs")[1:] == [
        [*names, "fused", "50.0", "-12.5", "-20.0 to -5.0", "3 : 8", "0.23"]
        for names in (
            ("sblimp, dev, mean over pairs", "whole_mean"),
            ("choice on heldout_stories", "text → speech"),
        )
    ]
    page = Page(text)
    assert page.open == []
    for remark in ("1 transcripts are empty", "2 transcripts are too short", "3 recordings could not be", "other tok"):
        assert remark in page.text
    for path in (full_run / "generation.json", full_run / "text_tasks.json", full_run / "comparison" / "compare.json"):
        content = path.read_text()
        path.write_text("{}")
        with pytest.raises(UserError, match=rf"{path.name} has not the expected content \(KeyError: .*make it again"):
            result_sections(read_run(full_run))
        path.write_text(content)


def test_a_run_of_a_sweep_shows_its_table(full_run: Path) -> None:
    (full_run.parent / "table.json").write_text(json.dumps(sweep()))
    assert not result_sections(read_run(full_run))  # a table of something else
    (full_run.parent / "sweep.json").write_text("{}")
    text = render(read_run(full_run))
    rows = _tables(text, "Ablations")
    assert rows[0] == ["variant", "parameters", "seeds", "speech loss", "T→S %"]
    assert rows[2] == ["no-pooling", "3,300,000", "3", "2.500 ± 0.040", "55.0 ± 4.0"]
    assert rows[4] == ["no-pooling", "3,300,000", "3", "+0.250 ± 0.040*", "-2.0 ± 4.0*"]
    assert rows[9][3] == "+0.250 ± 0.040" and len(rows) == 10
    picture = text[text.index("<h2>Ablations</h2>") :]
    picture = picture[picture.index("<svg") : picture.index("</svg>") + 6]
    words = "".join(ElementTree.fromstring(picture).itertext())
    for word in ("speech loss, nats", "T→S, points", "no-pooling", *SETS):
        assert word in words
    assert b"no-pooling" in (sweep_file(sweep()) or b"") and sweep_file(sweep() | {"differences": []}) is None


def test_text_of_a_model_cannot_become_markup(full_run: Path) -> None:
    path = full_run / "samples" / "samples.json"
    path.write_text(path.read_text().replace("to the island", "<script>alert(1)</script>"))
    page = Page(render(read_run(full_run)))
    assert "<script>alert(1)</script>" in page.text
    assert all(tag != "script" for tag, _ in page.elements)


def test_unfinished_run_says_which_verb_makes_what(bare_run: Path) -> None:
    page = Page(render(read_run(bare_run)))
    assert page.open == []
    assert "tolktrain generate CONFIG" in page.text and "tolktrain evaluate CONFIG" in page.text
    assert all(tag != "audio" for tag, _ in page.elements)
    assert len(_svgs(render(read_run(bare_run)))) == 3


def test_run_of_one_step(bare_run: Path) -> None:
    path = bare_run / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert Page(render(read_run(bare_run))).open == []


def test_missing_audio_file_leaves_its_player_out(full_run: Path) -> None:
    (full_run / "samples" / "story-0-continuation.wav").unlink()
    players = [a for tag, a in Page(render(read_run(full_run))).elements if tag == "audio"]
    assert len(players) == 8


def test_loss_table_joins_stages_and_evaluation(full_run: Path) -> None:
    rows = loss_table(read_run(full_run))
    keys = [(row["set"], row["strategy"], row["modality"]) for row in rows]
    order = [("text", "text"), ("speech", "speech"), ("interleaved", "text"), ("interleaved", "speech")]
    assert keys == [(name, *rest) for name in ("heldout_stories", "heldout_voices") for rest in order]
    for row in rows:
        assert set(row["stages"]) == {"text", "adapter", "joint"}
        assert (row["final"], row["bigram"]) == ((1.31, 2.05) if row["modality"] == "text" else (1.71, 2.30))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.2, "59 s"), (59.7, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7322, "2 h 2 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("value", "words"), [(12, "12"), (1500, "1.5 k"), (3_210_000, "3.21 M"), (1.7e9, "1.7 G")])
def test_counts(value: float, words: str) -> None:
    assert count(value) == words


def test_report_is_written_whole(full_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = report(full_run)
    assert path == full_run / "report.html"
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not list(full_run.glob("*.tmp")) and not list(full_run.glob(".tmp*"))
    assert "report.html" in capsys.readouterr().out


def test_configuration_is_shown(full_run: Path) -> None:
    tree = yaml.safe_load((full_run / "config.yaml").read_text())
    tree["run"]["note"] = "a <b> & c"
    (full_run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert "note: a <b> & c" in Page(render(read_run(full_run))).text


def test_a_full_disk_keeps_the_last_page(full_run: Path, make_disk: MakeDisk) -> None:
    disk = make_disk(4 << 10)
    run_dir = shutil.copytree(full_run, disk.path / "run")
    (run_dir / "report.html").write_text("the last page")
    disk.refuses(lambda: report(run_dir), f"'{run_dir}/report.html'", leaving_kib=40)
    assert (run_dir / "report.html").read_text().rstrip().endswith("</html>")


def test_changes_of_the_configuration_are_listed(full_run: Path) -> None:
    assert "Changes of the configuration" not in render(read_run(full_run))
    old, new = {"speech": {"weight": 1.0, "sets": {"<b>": 1.0}}}, None
    lines = [
        {
            "step": 301,
            "time": "2026-11-30T01:02:03+00:00",
            "key": "train.stages.1.learning_rate",
            "old": 2e-3,
            "new": 1e-3,
        },
        {"step": 601, "time": "2026-11-30T01:02:03+00:00", "key": "train.stages.2.mixture", "old": old, "new": new},
    ]
    (full_run / "changes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(render(read_run(full_run))).text
    assert "301 train.stages.1.learning_rate 2026-11-30T01:02:03+00:00 0.002 0.001" in text
    assert (
        "601 train.stages.2.mixture 2026-11-30T01:02:03+00:00 {'speech': {'weight': 1.0, 'sets': {'<b>': 1.0}}} absent"
        in text
    )


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": -1, "time": "", "key": "", "old": 1, "new": 2}'])
def test_a_damaged_list_of_changes_is_named(full_run: Path, line: str) -> None:
    (full_run / "changes.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"changes.jsonl cannot be read .* or delete it"):
        read_run(full_run)
