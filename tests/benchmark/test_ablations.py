"""The sweep over variants of the model: its processes, its resumption, and the numbers of its table."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tolktrain.benchmark.ablations.__main__ import main
from tolktrain.benchmark.ablations.items import Items, RunItems, read_items, write_items
from tolktrain.benchmark.ablations.statistics import estimate
from tolktrain.benchmark.ablations.sweep import Run, configuration, finished, train_all, worker_command
from tolktrain.benchmark.ablations.table import answer, build_table, markdown, write_table
from tolktrain.errors import UserError
from tolktrain.evaluate.run import evaluate

TINY = (
    *("model.backbone.hidden_size=48", "model.backbone.num_layers=2", "model.backbone.ffn_hidden_size=64"),
    *("train.sequence_length=192", "train.global_batch_size=4", "train.micro_batch_size=4", "data.num_workers=0"),
    *("evaluation.sequences=6", "evaluation.choices=8", "evaluation.baseline_records=8", "train.cpu_threads=1"),
)


@pytest.mark.slow
def test_two_variants_from_training_to_the_table(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the runs was interrupted after three steps. The second call of the sweep trains nothing."""
    arguments = ["--out", str(tmp_path), "--variants", "full,early-fusion", "--seeds", "0", "--steps", "9"]
    arguments += ["--processes", "1", *TINY]
    run = Run("full", 0, tmp_path)
    path, config = configuration(repository / "configs", "full", TINY)
    overrides = run.overrides(config, 9, 1, [*TINY, "train.max_steps=3"])
    subprocess.run(worker_command(run, path, overrides), cwd=repository, check=True, capture_output=True)
    assert read_items(run.items).step == 3
    run.items.unlink()

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 runs, of which 0 are done" in printed and "early-fusion" in printed and "One seed each of full" in printed
    metrics = [json.loads(line) for line in (tmp_path / "full-0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, 10))
    assert (tmp_path / "full-0" / "metrics.jsonl").read_text().count('"step": 3,') == 1
    log = run.log.read_text()
    assert "stage joint" in log and "stage text" not in log  # continued in the last stage, not begun again
    items = {run: read_items(run.items) for run in (run, Run("early-fusion", 0, tmp_path))}
    assert {found.tokens for found in items.values()} == {9 * 4 * 192}

    _check_against_evaluation(tmp_path / "full-0", items[run])
    table = json.loads((tmp_path / "table.json").read_text())
    for row in table["differences"]:
        means = [_plain_mean(_of(found, row["set"], row["measure"])) for found in items.values()]
        assert row["value"] == pytest.approx(means[1] - means[0], abs=1e-9)

    drawn_again = {"table.md", "table.json", "differences.svg"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in drawn_again]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(arguments) == 0
    assert "2 runs, of which 2 are done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert main([*arguments, "train.optimizer.weight_decay=0"]) == 2
    assert "give this one another --out" in capsys.readouterr().err


def _check_against_evaluation(run: Path, items: RunItems) -> None:
    """Losses and choices are those of `tolktrain evaluate`, which draws the same trials for seed 0."""
    found = evaluate(run)
    for row in found["losses"]:
        if row["strategy"] in ("text", "speech", "interleaved"):
            own = _plain_mean(_of(items, row["set"], f"{row['strategy']} loss"))
            assert own == pytest.approx(row["loss"], rel=1e-6)
    assert len(found["choices"]) >= 4
    for row in found["choices"]:
        assert _plain_mean(_of(items, row["set"], row["direction"])) == pytest.approx(row["accuracy"], abs=1e-12)


def _of(run: RunItems, name: str, measure: str) -> Items:
    return next(items for items in run.measures if (items.set, items.measure) == (name, measure))


def _plain_mean(items: Items) -> float:
    return sum(items.values) / sum(items.weights)


def _drawn(rng: np.random.Generator, seeds: int, shift: float = 0.0, groups: int = 60) -> list[Items]:
    """Runs with an effect of the seed, of the text (shared by seeds), and of both; the true ratio is 3 + shift."""
    group = np.repeat(np.arange(groups), 2)
    weights = rng.integers(50, 150, len(group)).astype(float)
    text = rng.normal(0, 0.3, groups)[group]
    runs = []
    for _ in range(seeds):
        level = 3 + shift + rng.normal(0, 0.05) + text + rng.normal(0, 0.1, len(group))
        keys = tuple(map(str, range(len(group))))
        runs.append(Items("s", "speech loss", keys, tuple(map(str, group)), tuple(level * weights), tuple(weights)))
    return runs


def test_the_interval_by_other_means() -> None:
    """The part of the seeds is Student's interval; the part of the items that of a bootstrap over texts."""
    rng = np.random.default_rng(3)
    runs = _drawn(rng, 3)
    found = estimate(runs)
    by_seed = [_plain_mean(run) for run in runs]
    assert found.by_seed == pytest.approx(by_seed) and found.value == pytest.approx(np.mean(by_seed))
    low, high = stats.t.interval(0.95, 2, np.mean(by_seed), stats.sem(by_seed))
    assert found.seed_half == pytest.approx((high - low) / 2)
    values, weights = np.mean([run.values for run in runs], axis=0).reshape(-1, 2), np.array(runs[0].weights)
    drawn = rng.integers(0, 60, (4000, 60))
    ratios = values.sum(axis=1)[drawn].sum(axis=1) / weights.reshape(-1, 2).sum(axis=1)[drawn].sum(axis=1)
    assert found.item_half == pytest.approx(1.96 * ratios.std(), rel=0.08)
    assert found.half == pytest.approx(np.hypot(found.seed_half or 0, found.item_half))
    alone = estimate(runs[:1])
    assert alone.seed_half is None and alone.half == alone.item_half


def test_the_interval_covers_other_seeds_and_items() -> None:
    rng = np.random.default_rng(0)
    found = [estimate(_drawn(rng, 3)) for _ in range(300)]
    covered = np.mean([abs(one.value - 3) <= one.half for one in found])
    assert 0.93 <= covered <= 1.0
    only_items = np.mean([abs(one.value - 3) <= one.item_half for one in found])
    assert only_items < covered


def test_a_difference_is_paired() -> None:
    """What seeds and texts do to both variants cancels."""
    rng = np.random.default_rng(1)
    full = _drawn(rng, 3)
    noise = [rng.normal(0.05, 0.01, len(run.keys)) * np.array(run.weights) for run in full]
    other = [replace(run, values=tuple(np.add(run.values, more))) for run, more in zip(full, noise, strict=True)]
    found = estimate(other, full)
    assert found.value == pytest.approx(0.05, abs=0.003) and found.half < 0.01 < estimate(full).half


def _run_items(runs: Sequence[Items], place: int, tokens: int = 100) -> RunItems:
    choice = Items("s", "text_to_text", ("a", "b", "c"), ("a", "b", "c"), (1.0, 0.5, place % 2), (1.0, 1.0, 1.0))
    return RunItems(10, tokens, 1000 + place, (runs[place], choice))


def test_table_and_answer(tmp_path: Path) -> None:
    full = _drawn(np.random.default_rng(2), 3)
    worse = [replace(run, values=tuple(np.array(run.values) * 1.1)) for run in full]
    found = {Run("full", seed, tmp_path): _run_items(full, seed) for seed in range(3)}
    found |= {Run("no-pooling", seed, tmp_path): _run_items(worse, seed) for seed in range(3)}
    for variant, overlap in (("full", 0.4), ("no-pooling", 0.2)):
        for seed in range(3):
            file = tmp_path / f"{variant}-{seed}" / "analysis" / "analysis.json"
            file.parent.mkdir(parents=True)
            layers = {"embedding": {"overlap": overlap}, "layer 1": {"overlap": overlap + 0.1 + 0.001 * seed}}
            file.write_text(json.dumps({"models": {"trained": {"subspaces": {"layers": layers}}}}))
    table = build_table(found)
    shown = {(row["variant"], row["measure"]): row for row in table["rows"]}
    assert shown["full", "text_to_text"]["value"] == pytest.approx((0.5 + 2.5 / 3 + 0.5) / 3)
    assert shown["full", "overlap"]["value"] == pytest.approx(0.4505)
    differences = {row["measure"]: row for row in table["differences"]}
    assert differences["speech loss"]["full_is_better"] and differences["overlap"]["value"] == pytest.approx(-0.2)
    assert differences["overlap"]["full_is_better"] and not differences["text_to_text"]["shown"]
    text = markdown(table)
    assert "full against no-pooling: better in 2 of 3 measures (speech loss on s, overlap), worse in 0, no diff" in text
    assert "| full | 1,000 | 3 | 2.974 ± 0.099 |" in text and "+0.297 ± 0.010*" in text and "-0.200 ± 0.000*" in text
    assert "claims? In part: of 3 differences, 2 favour full, 0 another variant, and 1 are within" in text
    assert "so seeds, or steps per run would have to grow" in text or "so held-out items would have to grow" in text
    write_table(tmp_path, table, "bash launch/ablations.sh --seeds 0,1,2")
    page = (tmp_path / "table.md").read_text()
    assert "bash launch/ablations.sh --seeds 0,1,2" in page and "torch 2." in page and text in page
    assert "(differences.svg)" in page and b"<svg" in (tmp_path / "differences.svg").read_bytes()
    one_seed = build_table({run: items for run, items in found.items() if run.seed == 0})
    assert not any(row["shown"] for row in one_seed["differences"])
    assert "One seed each of full, no-pooling" in "\n".join(answer(one_seed))
    assert "claims? Not answered: one seed" in "\n".join(answer(one_seed))


def test_runs_of_unequal_length_are_refused(tmp_path: Path) -> None:
    runs = [Run("full", 0, tmp_path), Run("no-pooling", 0, tmp_path)]
    full = _drawn(np.random.default_rng(2), 1)
    for number, run in enumerate(runs):
        write_items(run.items, _run_items(full, 0, tokens=100 + number))
    with pytest.raises(UserError, match=r"full-0\.json is after 100 tokens, .*no-pooling-0\.json after 101"):
        finished(runs)
    runs[0].items.write_text("{")
    with pytest.raises(UserError, match=r"full-0\.json cannot be read"):
        finished(runs)


_STAND_IN = """
import pathlib, signal, sys, time
def stop(*a):
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
items, what = pathlib.Path(sys.argv[1]), sys.argv[2]
items.with_suffix(".started").touch()
if what == "wait":
    time.sleep(60)
elif what == "fail":
    sys.exit(3)
items.write_text("done")
"""


def _stand_ins(tmp_path: Path, plan: dict[str, str]) -> tuple[list[Run], list[str], list[list[str]]]:
    """Runs whose processes do what `plan` says; what was said."""
    (tmp_path / "items").mkdir(exist_ok=True)
    runs = [Run(name, 0, tmp_path) for name in plan]
    commands = [[sys.executable, "-S", "-c", _STAND_IN, str(run.items), plan[run.variant]] for run in runs]
    return runs, [], commands


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path) -> None:
    runs, said, commands = _stand_ins(tmp_path, {"a": "fail", "b": "work", "c": "work"})
    known = dict(zip(runs, commands, strict=True))
    failed = train_all(runs, known.__getitem__, tmp_path, 2, said.append)
    assert failed == runs[:1] and all(run.items.is_file() for run in runs[1:])
    assert any("a-0: failed with exit code 3, see" in line for line in said)
    again: list[str] = []
    train_all(runs, known.__getitem__, tmp_path, 2, again.append)
    assert again[0] == "3 runs, of which 2 are done" and not any("b-0" in line for line in again)


def test_a_signal_reaches_the_processes(tmp_path: Path) -> None:
    """Both processes end with 75, and no further run is started."""
    runs, said, commands = _stand_ins(tmp_path, {"a": "wait", "b": "wait", "c": "work"})
    known = dict(zip(runs, commands, strict=True))

    def say(line: str) -> None:
        said.append(line)
        if line == "b-0: started":
            deadline = time.monotonic() + 60
            while not all(run.items.with_suffix(".started").exists() for run in runs[:2]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_all(runs, known.__getitem__, tmp_path, 2, say)
    assert not any(run.items.exists() for run in runs) and not any("c-0" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "ful"], "unknown variant 'ful'; known are full, no-pooling"),
        (["--steps", "2"], "has 3 stages, which need a step each"),
        (["model.hidden=3"], "model.hidden"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_steps_keep_the_proportions_of_the_stages(tmp_path: Path, repository: Path) -> None:
    _, config = configuration(repository / "configs", "full")
    run = Run("full", 1, tmp_path)
    found = dict(text.split("=", 1) for text in run.overrides(config, 660, 1, []))
    tokens = [int(found[f"train.stages.{n}.tokens"]) for n in range(3)]
    assert sum(tokens) == 660 * 2048
    assert np.array(tokens) / sum(tokens) == pytest.approx(np.array([0.3, 0.4, 2.0]) / 2.7, abs=0.002)
    assert found["train.stages.2.schedule.decay_steps"] == str(round(300 * 660 * 2048 / 2_700_000))
    assert found["run.seed"] == "1" and "train.stages.0.tokens" not in "".join(run.overrides(config, None, 1, []))
