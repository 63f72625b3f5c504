"""Runs with chosen scores: what is compared, and which runs are refused."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_runs import pairs, scores, write_benchmark, write_evaluation, write_run
from parsed_page import Page

from tolktrain import cli
from tolktrain.compare.run import compare, write_comparison
from tolktrain.compare.terminal import print_comparison
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs, the second one better than the others."""
    return [
        write_run(tmp_path, "base", 1, 0.3),
        write_run(tmp_path, "better", 2, 0.95, sequence_length=512),
        write_run(tmp_path, "third", 3, 0.3),
    ]


def _points(own: dict[str, float], measure: str) -> dict[str, float]:
    """The mean points of the ids of a measure, from the rule of ZeroSpeech."""
    found: dict[str, list[float]] = {}
    for pair in pairs():
        if measure != "npi only" or pair.labels["type"] == "npi":
            difference = own[pair.correct] - own[pair.incorrect]
            found.setdefault(pair.id, []).append(0.5 if difference == 0 else float(difference > 0))
    return {name: sum(values) / len(values) for name, values in found.items()}


def test_accuracies_and_differences_from_the_definitions(runs: list[Path]) -> None:
    result = compare(runs)
    assert [run["name"] for run in result["runs"]] == ["base", "better", "third"]
    assert result["runs"][0]["steps"] == {"held-out sets": 7, "sblimp": 7}
    values = [scores(pairs(), seed, skill) for seed, skill in ((1, 0.3), (2, 0.95), (3, 0.3))]
    keys = [(row["measure"], row["rule"]) for row in result["benchmarks"]]
    measures = ("mean over pairs", "npi only", "types")
    assert keys == [(measure, rule) for rule in ("whole_mean", "whole_sum") for measure in measures]
    for row in result["benchmarks"]:
        if row["measure"] == "types":
            continue
        mine = [_points(own, row["measure"]) for own in values]
        assert row["ids"] == len(mine[0])
        for place, (entry, own) in enumerate(zip(row["runs"], mine, strict=True)):
            assert entry["accuracy"] == pytest.approx(np.mean(list(own.values())), rel=1e-12)
            paired = entry["against_first"]
            if place == 0:
                assert paired is None
                continue
            differences = np.array([own[name] - mine[0][name] for name in own])
            assert paired["difference"] == pytest.approx(differences.mean(), abs=1e-12)
            assert (paired["better"], paired["worse"]) == ((differences > 0).sum(), (differences < 0).sum())
    better = result["benchmarks"][0]["runs"][1]["against_first"]
    assert better["low"] > 0 and better["p"] < 0.05


def test_losses_choices_and_configurations(runs: list[Path]) -> None:
    result = compare(runs)
    [losses] = result["losses"]
    assert [entry["loss"] for entry in losses["runs"]] == [2.1, 2.2, 2.3]
    assert [entry["difference"] for entry in losses["runs"]] == [None, pytest.approx(0.1), pytest.approx(0.2)]
    assert [row["direction"] for row in result["choices"]] == ["text_to_text", "speech_to_text"]
    row = result["choices"][0]
    lines = [[json.loads(line) for line in (run / "choices.jsonl").read_text().splitlines()] for run in runs]
    won = [
        [(a > b) + 0.5 * (a == b) for line in own if line.get("direction") == "text_to_text"
         for a, b in [line["scores"]["model"]]] for own in lines
    ]  # fmt: skip
    assert (row["trials"], row["texts"]) == (40, 10)
    assert [entry["accuracy"] for entry in row["runs"]] == [np.mean(values) for values in won]
    by_text = np.subtract(won[1], won[0]).reshape(4, 10).sum(axis=0)
    paired = row["runs"][1]["against_first"]
    assert (paired["better"], paired["worse"]) == ((by_text > 0).sum(), (by_text < 0).sum())
    assert result["configuration"] == [{"key": "train.sequence_length", "values": [256, 512, 256]}]
    assert result["remarks"] == []


def test_configurations_name_stages_and_defaults(tmp_path: Path) -> None:
    first, other = (write_run(tmp_path, name, 1, 0.3) for name in ("one", "two"))
    text = (other / "config.yaml").read_text()
    text = text.replace("learning_rate: 0.001", "learning_rate: 0.002") + "logging: {tensorboard: false}\n"
    (other / "config.yaml").write_text(text)
    assert compare([first, other])["configuration"] == [
        {"key": "logging.tensorboard", "values": [True, False]},
        {"key": "train.stages.0.learning_rate", "values": [1e-3, 2e-3]},
    ]
    (other / "config.yaml").unlink()
    result = compare([first, other])
    assert result["configuration"] == [] and "holds no config.yaml" in result["remarks"][0]


def test_order_of_the_lines_changes_nothing(runs: list[Path]) -> None:
    expected = compare(runs)
    for number, path in enumerate(
        path for run in runs for path in (run / "scores" / "sblimp.jsonl", run / "choices.jsonl")
    ):
        header, *lines = path.read_text().splitlines()
        shuffled = [lines[place] for place in np.random.default_rng(number).permutation(len(lines))]
        path.write_text("\n".join([header, *shuffled]) + "\n")
    assert json.dumps(compare(runs)) == json.dumps(expected)


def test_a_run_against_its_copy(tmp_path: Path) -> None:
    first, other = (write_run(tmp_path, name, 5, 0.5) for name in ("one", "two"))
    for row in [*compare([first, other])["benchmarks"], *compare([first, other])["choices"]]:
        paired = row["runs"][1]["against_first"]
        assert (paired["difference"], paired["better"], paired["worse"]) == (0, 0, 0)
        assert paired["p"] in (1.0, None) and paired["low"] < 0 < paired["high"]


def test_rules_are_recomputed_from_the_scores(runs: list[Path]) -> None:
    rules = ["whole_sum_closing_eos"]
    result = compare(runs, rules=rules)
    assert {row["rule"] for row in result["benchmarks"]} == set(rules)
    with pytest.raises(
        UserError, match=r"base/scores/sblimp.jsonl: there are no scores for the rule whole_mean_no_con"
    ):
        compare(runs, rules=["whole_mean_no_context"])
    with pytest.raises(UserError, match="unknown rule 'mean'"):
        compare(runs, rules=["mean"])


# Each takes the folder of the second run, and makes it one that cannot be compared.


SCORES, TRIALS = "scores/sblimp.jsonl", "choices.jsonl"


def _rewrite(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    def act(run: Path) -> None:
        lines = change((run / name).read_text().splitlines())
        (run / name).write_text("\n".join(lines) + "\n")

    return act


def _replaced(name: str, place: int | None, pattern: str, text: str) -> Callable[[Path], object]:
    """`text` for what the regular expression matches in one line, or in all."""

    def change(lines: list[str]) -> list[str]:
        chosen = range(len(lines)) if place is None else [place % len(lines)]
        return [re.sub(pattern, text, line) if number in chosen else line for number, line in enumerate(lines)]

    return _rewrite(name, change)


def _with(change: Callable[[list[Any]], list[Any]] = lambda own: own, **options: Any) -> Callable[[Path], object]:
    def act(run: Path) -> None:
        own = change(pairs())
        write_benchmark(run, own, scores(own, 2, 0.9), **options)

    return act


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing item": (_rewrite(SCORES, lambda lines: lines[:-1]), r"better/scores/sblimp.jsonl: 29B- has no score"),
    "a doubled item": (_rewrite(SCORES, lambda lines: [*lines, lines[-1]]), r"sblimp.jsonl: 29B- is scored twice"),
    "a doubled pair": (
        _rewrite(SCORES, lambda lines: [*lines[:3], *lines[2:]]),
        r"better/scores/sblimp.jsonl: test has the pair 0 \(0A\+ / 0A-, A, type agreement\) twice",
    ),
    "other items": (
        _with(lambda own: [*own[:-1], replace(own[-1], correct="x")]),
        r"sblimp, test: the pairs differ: 1 only in .*base \(29 \(29B\+ / 29B-, B, type reflexive\)\);"
        r" 1 only in .*better \(29 \(x / 29B-.*; evaluate all runs on the same files",
    ),
    "fewer pairs": (_with(lambda own: own[:-7]), r"the pairs differ: 7 only in .*base \(.*, \.\.\.\); evaluate"),
    "another type": (
        _with(lambda own: [replace(own[0], labels={"type": "npi"}), *own[1:]]),
        r"the pairs differ: 1 only in .*\(0 \(0A\+ / 0A-, A, type agreement\)\)",
    ),
    "other recordings": (
        _replaced(SCORES, -1, '"tokens": 3', '"tokens": 4'),
        r"recordings or texts of some items differ: 1 only in .*base \(29B- with 3 tokens\); 1 only in .*with 4 tokens",
    ),
    "other rules": (
        _with(rules=["whole_sum"]),
        r"sblimp, test: the rules differ: 1 only in .*base \(whole_mean\); name the rules for the comparison with",
    ),
    "another benchmark": (_with(benchmark="swuggy"), r"sblimp: the benchmarks differ: 1 only in .* \(sblimp\)"),
    "another set": (
        _replaced(SCORES, None, '"set": "test"', '"set": "dev"'),
        r"sblimp: the sets differ: 1 only in .*base \(test\); 1 only in .*better \(dev\)",
    ),
    "an old format": (
        _replaced(SCORES, 0, '"format": 2', '"format": 1'),
        r"better/scores/sblimp.jsonl is no score file of this version",
    ),
    "no scores": (
        lambda run: (run / SCORES).unlink(),
        r"better has no scores of sblimp, which other runs have; `tolktrain evaluate .*better --benchmarks sblimp=FOLD",
    ),
    "no evaluation": (
        lambda run: (run / "evaluation.json").unlink(),
        r"better has no evaluation.json, .*`tolktrain evaluate .*better` writes it",
    ),
    "no trials": (
        lambda run: (run / TRIALS).unlink(),
        r"better/choices.jsonl, the scores of single trials, is missing; `tolktrain evaluate",
    ),
    "other trials": (
        _rewrite(TRIALS, lambda lines: lines[:-1]),
        r"stories, text_to_text: the trials differ: 1 only in .*base \(t39\); evaluate all runs with the same held-out",
    ),
    "a doubled trial": (
        _rewrite(TRIALS, lambda lines: [*lines, lines[-1]]),
        r"better/choices.jsonl: the trial 't39' is there twice",
    ),
    "a trial without a number": (
        _replaced(TRIALS, -1, r'"model": \[-?\d\.0', '"model": [NaN'),
        r"better/choices.jsonl: a score of the trial 't39' is not a finite number",
    ),
    "older trials": (
        _replaced(TRIALS, 0, '"step": 7', '"step": 6'),
        r"choices.jsonl is of step 6, but evaluation.json next to it of step 7",
    ),
    "older scores": (
        _with(step=3),
        r"better: the evaluations are of different steps \(held-out sets of step 7, sblimp of step 3\)",
    ),
    "nothing": (
        lambda run: [(run / name).unlink() for name in (SCORES, "evaluation.json")],
        r"better holds no evaluation; `tolktrain evaluate .*better` measures it on its held-out sets, and .*FOLDER",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_runs_that_cannot_be_compared(runs: list[Path], kind: str) -> None:
    act, message = REFUSED[kind]
    act(runs[1])
    with pytest.raises(UserError, match=message):
        compare(runs[:2])


def test_benchmarks_can_be_named(runs: list[Path]) -> None:
    write_benchmark(runs[0], pairs(), scores(pairs(), 4, 0.5), label="more", step=3)
    result = compare(runs, benchmarks=["sblimp"])
    assert {row["benchmark"] for row in result["benchmarks"]} == {"sblimp"}
    with pytest.raises(UserError, match="no run has scores of 'swuggy'; there are those of more, sblimp"):
        compare(runs, benchmarks=["swuggy"])


def test_other_tokenizers_are_compared_by_accuracy_but_not_by_loss(runs: list[Path]) -> None:
    own = pairs()
    write_benchmark(runs[1], own, scores(own, 2, 0.9), tokenizers={"text": "c" * 64, "speech": None})
    path = runs[1] / "choices.jsonl"
    path.write_text(path.read_text().replace("a" * 64, "c" * 64))
    result = compare(runs[:2])
    assert result["losses"][0]["runs"][1] == {"run": "better", "loss": 2.2, "bigram_loss": 3.5, "difference": None}
    assert result["remarks"] == ["base and better were not scored on the same text tokens of stories"]
    write_evaluation(runs[2], 2.3, 3, positions=999)
    assert compare([runs[0], runs[2]])["losses"][0]["runs"][1]["difference"] is None


def test_fewer_than_two_runs(runs: list[Path]) -> None:
    with pytest.raises(UserError, match="needs two runs or more"):
        compare(runs[:1])
    with pytest.raises(UserError, match="named twice"):
        compare([runs[0], runs[0] / "scores" / ".."])


def test_runs_of_one_name_are_named_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / side, "same", seed, 0.5) for seed, side in enumerate("ab")]
    assert [run["name"] for run in compare(runs)["runs"]] == [str(run) for run in runs]


def test_page_and_files(runs: list[Path], tmp_path: Path) -> None:
    config = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(config.replace("name: better", "name: '<script>x</script>'"))
    result = compare(runs)
    write_comparison(result, tmp_path / "out" / "deep")
    assert json.loads((tmp_path / "out" / "deep" / "compare.json").read_text()) == json.loads(json.dumps(result))
    text = (tmp_path / "out" / "deep" / "compare.html").read_text()
    page = Page(text)
    assert page.open == [] and text.count("<svg") == 1 and "@import" not in text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "img"}
    assert all(not {"src", "href"} & attributes.keys() for tag, attributes in page.elements if tag != "use")
    row = result["benchmarks"][0]["runs"][1]["against_first"]
    for expected in (
        "<script>x</script>", "whole_mean", f"{100 * row['difference']:+.1f}", f"{row['better']} : {row['worse']}",
        "text → text", "train.sequence_length", "2.200", "+0.100", "McNemar",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        write_benchmark(folder, pairs(), scores(pairs(), seed, 0.5))
    result = compare(folders)
    write_comparison(result, tmp_path / "out")
    page = Page((tmp_path / "out" / "compare.html").read_text())
    assert "Benchmarks" in page.text
    for absent in ("Choice between", "Held-out losses", "configurations differ", "What differs"):
        assert absent not in page.text


def test_command_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    assert cli.main(["compare", str(runs[0]), "--output", str(out), str(runs[1])]) == 0
    printed = capsys.readouterr().out
    for word in ("base", "better", "whole_sum", "McNemar", "Held-out losses", "train.sequence_length", "text → text"):
        assert word in printed, word
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json"]
    for arguments, message in (
        ([str(runs[0])], "needs two runs or more"),
        ([str(runs[0]), "nowhere"], "nowhere does not exist; name a run directory"),
        ([str(runs[0]), str(runs[1]), "train.max_steps=3"], "train.max_steps=3 does not exist"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_control_characters_of_a_run_do_not_reach_the_terminal(runs: list[Path]) -> None:
    config = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(config.replace("name: better", 'name: "a\\e[2Jb"'))
    output = io.StringIO()
    print_comparison(compare(runs[:2]), Console(width=160, file=output))
    assert "\x1b" not in output.getvalue() and "[2Jb" in output.getvalue()
