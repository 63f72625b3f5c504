"""Text tasks of a run against its backbone, from files to the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_data import TASKS, write_lines, write_parquet, write_text_data
from tiny_run import tiny_tree, write_run

pytest.importorskip("lm_eval")

from tolktrain import cli
from tolktrain.errors import UserError
from tolktrain.evaluate.text import catalog
from tolktrain.evaluate.text.catalog import TextTask, find_tasks
from tolktrain.evaluate.text.data_files import find_files
from tolktrain.evaluate.text.paired import mean_interval
from tolktrain.evaluate.text.retention import MEAN, evaluate_text_tasks, table_rows
from tolktrain.evaluate.text.tasks import TextItem, loaded_tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_text_data(folder)
    return folder


def _items(path: Path) -> list[dict]:
    header, *items = map(json.loads, path.read_text().splitlines())
    assert header["kind"] == "header"
    return items


def test_a_run_against_another(
    tiny_run: Path,
    data: Path,
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command line, and every number of the table from the files of scores by other means."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other", tiny_tree(tmp_path / "other", repository), seed=1)
    names = ["hellaswag", "piqa", "blimp_adjunct_island", "blimp_causative"]
    options = ["--text-tasks", ",".join(names), "--data-dir", str(data), "--against", str(other)]
    assert cli.main(["evaluate", str(tiny_run), *options]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("hellaswag", "acc_norm", "blimp", MEAN, "gained", "tiny, step 2 against"))
    result = json.loads((tiny_run / "text_tasks.json").read_text())
    assert [row["task"] for row in result["rows"]] == [*names[:2], *names[2:], "blimp", MEAN]
    assert result["context"] == 192 and result["files"]["hellaswag"][1].endswith("00001-of-00002.parquet")
    rows = {row["task"]: row for row in result["rows"]}
    differences = {}
    for name in names:
        ours = _items(tiny_run / "scores" / "text" / f"{name}.jsonl")
        theirs = _items(tiny_run / "scores" / "text" / f"{name}.against.jsonl")
        assert [item["hash"] for item in ours] == [item["hash"] for item in theirs]
        for items in (ours, theirs):
            for item in items:
                assert item["metrics"]["acc"] == (np.argmax(item["log_likelihoods"]) == item["target"])
        metric = rows[name]["metric"]
        pairs = [(one["metrics"][metric], two["metrics"][metric]) for one, two in zip(ours, theirs, strict=True)]
        assert rows[name]["accuracy"] == pytest.approx(np.mean([one for one, _ in pairs]))
        assert rows[name]["against_accuracy"] == pytest.approx(np.mean([two for _, two in pairs]))
        assert (rows[name]["gained"], rows[name]["lost"]) == (pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0)))
        differences[name] = np.mean([one - two for one, two in pairs])
        assert rows[name]["difference"] == pytest.approx(differences[name])
        assert rows[name]["difference_low"] <= differences[name] <= rows[name]["difference_high"]
    blimp = (differences[names[2]] + differences[names[3]]) / 2
    assert rows["blimp"]["difference"] == pytest.approx(blimp)
    expected = (differences["hellaswag"] + differences["piqa"] + blimp) / 3
    assert rows[MEAN]["difference"] == pytest.approx(expected)


def test_weights_answer_as_the_run(tiny_run: Path, data: Path, tmp_path: Path) -> None:
    """With the tokenizer and the context of their folder."""
    weights = tmp_path / "weights"
    assert cli.main(["export", str(tiny_run), str(weights)]) == 0
    for model in (tiny_run, weights):
        assert cli.main(["evaluate", str(model), "--text-tasks", "piqa", "--data-dir", str(data)]) == 0
    ours, theirs = (_items(model / "scores" / "text" / "piqa.jsonl") for model in (tiny_run, weights))
    for one, other in zip(ours, theirs, strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], rel=1e-5)
    assert json.loads((weights / "text_tasks.json").read_text())["context"] == 192


def test_hellaswag_is_normalized_by_characters(tiny_run: Path, data: Path) -> None:
    evaluate_text_tasks(tiny_run, ["hellaswag"], data)
    for item in _items(tiny_run / "scores" / "text" / "hellaswag.jsonl"):
        name, place, thing, other = _words(item["id"])
        endings = [f"{name} finds a {thing}. .", f"{name} eats the {place}.", "it rains.", f"a {other}."]
        by_character = [value / len(text) for value, text in zip(item["log_likelihoods"], endings, strict=True)]
        assert item["metrics"]["acc_norm"] == (np.argmax(by_character) == item["target"])


def _words(number: int) -> tuple[str, str, str, str]:
    from text_data import _items as words

    return words()[number]


def test_paired_numbers() -> None:
    """Twenty items of which the run loses six and gains one: McNemar's exact p is 2 (1 + 7) / 2^7."""

    def items(right: list[int]) -> list[TextItem]:
        return [TextItem(n, "", 0, (), (), {"acc": float(value)}) for n, value in enumerate(right)]

    [task] = [TextTask("winogrande", "", catalog._MMLU)]
    own, other = [1] * 8 + [0] * 6 + [1] + [0] * 5, [1] * 8 + [1] * 6 + [0] + [0] * 5
    [row] = table_rows([task], {"winogrande": items(own)}, {"winogrande": items(other)})
    assert (row["gained"], row["lost"], row["p"]) == (1, 6, pytest.approx(2 * 8 / 2**7))
    draws = np.random.default_rng(5).choice(np.subtract(own, other), (20000, 20)).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert row["difference"] == -0.25
    assert (row["difference_low"], row["difference_high"]) == (
        pytest.approx(low, abs=0.051),
        pytest.approx(high, abs=0.051),
    )
    assert "difference" not in table_rows([task], {"winogrande": items(own)}, None)[0]


def test_interval_of_equal_models_is_not_a_point() -> None:
    low, high = mean_interval([np.zeros(50)], lowest=-1.0)
    assert (low, high) == (pytest.approx(-0.0711, abs=1e-4), pytest.approx(0.0711, abs=1e-4))  # 1 - 0.025^(1/50)
    assert mean_interval([np.ones(50)]) == (pytest.approx(0.9289, abs=1e-4), 1.0)


def test_definitions_of_the_harness() -> None:
    """Each task's definition exists; parts of groups are named as the harness names them."""
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = catalog.definitions_folder()
    tasks = find_tasks(
        [*TASKS[:5], "arc_challenge", "boolq", "openbookqa", "sciq", "storycloze_2016", "commonsense_qa"]
    )
    groups = find_tasks(["blimp", "mmlu"])
    assert len(groups) == 67 + 57
    for task in [*tasks, *groups[::12]]:
        definition = load_yaml(folder / task.definition, resolve_func=False)
        assert definition["task"] == task.name
        assert definition["dataset_path"] == task.data.hub
        assert definition.get("dataset_name") in (task.part, None, "default")
        split = definition.get("test_split") or definition["validation_split"]
        assert split == task.data.split


def test_nothing_is_asked_of_the_network(tiny_run: Path, data: Path) -> None:
    """In a process whose sockets fail, with empty caches of the hub. And no library shows a progress bar."""
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from tolktrain.evaluate.text.retention import evaluate_text_tasks\n"
        "print(len(evaluate_text_tasks(sys.argv[1], ['arc_easy'], sys.argv[2])['rows']))\n"
    )
    environ = {**os.environ, "HF_HOME": str(tiny_run / "hub")}
    environ.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", script, str(tiny_run), str(data)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1"], done.stderr
    assert "%|" not in done.stderr


def _task(name: str) -> TextTask:
    return find_tasks([name])[0]


def test_files_of_a_part(tmp_path: Path) -> None:
    """Folders and names of parts; splits by words of a name; names that only contain a split's name."""
    arc, blimp = tmp_path / "ai2_arc", tmp_path / "blimp"
    for name in ("ARC-Easy/train.jsonl", "ARC-Easy/test.jsonl", "ARC-Challenge/test.jsonl", "ARC-Easy/contest.jsonl"):
        write_lines(arc / name, [])
    assert find_files(_task("arc_easy"), tmp_path) == ("json", [arc / "ARC-Easy" / "test.jsonl"])
    for name in ("passive_1.jsonl", "passive_2.jsonl", "only_npi_scope/train-00000-of-00001.parquet"):
        write_lines(blimp / name, [])
    assert find_files(_task("blimp_passive_1"), tmp_path) == ("json", [blimp / "passive_1.jsonl"])
    expected = ("parquet", [blimp / "only_npi_scope" / "train-00000-of-00001.parquet"])
    assert find_files(_task("blimp_only_npi_scope"), tmp_path) == expected
    write_lines(tmp_path / "hellaswag" / "hellaswag_val.jsonl", [])
    assert find_files(_task("hellaswag"), tmp_path)[1][0].name == "hellaswag_val.jsonl"


def test_files_that_are_missing_or_ambiguous(tmp_path: Path) -> None:
    task = _task("hellaswag")
    with pytest.raises(UserError, match="hellaswag, the data of hellaswag, does not exist; it should hold"):
        find_files(task, tmp_path)
    folder = tmp_path / "hellaswag"
    write_lines(folder / "train.jsonl", [])
    with pytest.raises(UserError, match="no file of the split validation for hellaswag; needed: .*validation.jsonl"):
        find_files(task, tmp_path)
    for number in (0, 2):
        write_lines(folder / f"validation-0000{number}-of-00003.parquet", [])
    with pytest.raises(UserError, match="incomplete: part 1 of 3 is missing"):
        find_files(task, tmp_path)
    write_lines(folder / "data" / "valid.jsonl", [])
    with pytest.raises(UserError, match=r"several files could be the data of hellaswag: .*valid\.jsonl"):
        find_files(task, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": None}, "has no field 'answerKey', which arc_easy needs; it has question, choices"),
        ({"answerKey": "E"}, "item 2 of .*test.jsonl is not what arc_easy expects"),
        ({"choices": "in the garden"}, "item 2 of .*test.jsonl is not what arc_easy expects"),
    ],
)
def test_items_that_are_not_what_the_task_expects(tmp_path: Path, change: dict, message: str) -> None:
    good = {"question": "Who?", "choices": {"text": ["Tom", "Mia"], "label": ["A", "B"]}, "answerKey": "A"}
    last = {key: value for key, value in {**good, **change}.items() if value is not None}
    first = {key: value for key, value in good.items() if key in last}
    write_lines(tmp_path / "ai2_arc" / "ARC-Easy" / "test.jsonl", [first, last])
    with pytest.raises(UserError, match=message), loaded_tasks([_task("arc_easy")], tmp_path):
        pass


def test_damaged_and_empty_files(tmp_path: Path) -> None:
    file = tmp_path / "piqa" / "validation.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"validation\.parquet cannot be read"), loaded_tasks([_task("piqa")], tmp_path):
        pass
    write_parquet(file, [{"goal": "", "sol1": "a", "sol2": "", "label": 0}])
    with (
        pytest.raises(UserError, match=r"piqa/validation\.parquet cannot be read as data of piqa"),
        loaded_tasks([_task("piqa")], tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text-tasks", "helaswag", "--data-dir", "."], "unknown task 'helaswag'; did you mean hellaswag?"),
        (["--text-tasks", "piqa,piqa", "--data-dir", "."], "names piqa twice"),
        (["--text-tasks", "blimp_passive_1,blimp", "--data-dir", "."], "names blimp_passive_1 twice"),
        (["--text-tasks", "piqa", "--data-dir", "."], "piqa, the data of piqa, does not exist"),
        (["--text-tasks", "piqa"], "--text-tasks needs --data-dir"),
        (["--text-tasks", "piqa,", "--data-dir", "."], "has an empty name"),
        (["--against", "."], "--against concerns text tasks"),
        (["--text-tasks", "piqa", "--benchmarks", "sblimp=."], "exclude each other"),
    ],
)
def test_bad_command_lines(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tiny_run)
    assert cli.main(["evaluate", str(tiny_run), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tiny_run / "text_tasks.json").exists()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the extra eval: pip install -e '\.\[eval\]'"):
        find_tasks(["piqa"])
