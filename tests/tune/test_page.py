"""What a search shows: every setting has a place, and texts of trials are only text."""

from pathlib import Path

import pytest
from predictors import CONFIGS, CPU, predictor_of

from tolktrain import cli
from tolktrain.files.terminal import Console
from tolktrain.plan.candidates import Cluster
from tolktrain.tune.answer import StageResult, calibration
from tolktrain.tune.page import write_page
from tolktrain.tune.search import Found, Pruned, Trial
from tolktrain.tune.setting import Outcome, Setting
from tolktrain.tune.terminal import print_fits, print_stage, remarks

CONFIG = str(CONFIGS / "bench" / "cpu.yaml")


def setting(micro: int, stage: int = 1, label: str = "") -> Setting:
    entries = {"zero_optimization": {"stage": stage}}
    return Setting.of_entries(entries, tensor=1, pipeline=1, zero_stage=stage, micro_batch_size=micro, label=label)


def timed(seconds: float, loss: float = 2.0) -> Outcome:
    return Outcome("ok", 8192, (seconds, seconds), loss, peak_memory_gib=1.25, start_memory_gib=0.5)


@pytest.fixture
def result() -> StageResult:
    found = Found(2, 1e-4, lambda _: True)
    found.trials += [
        Trial(setting(2, label="the configuration"), 2, 0, timed(2.0)),
        Trial(setting(2, 2, "zero2.json"), 2, 0, timed(4.0)),
        Trial(setting(2, 3, "zero3.json"), 2, 0, timed(0.5, loss=2.1)),
        Trial(setting(4), 2, 0, timed(1.0)),
        Trial(setting(4), 2, 1, timed(1.1)),
        Trial(setting(1, 2), 1, 0, timed(3.0)),
        Trial(setting(4, 3), 1, 0, Outcome("failed", message="<script>alert(1)</script>")),
    ]
    found.pruned.append(Pruned(setting(4, 2), "needs 9.0 of 1.0 GiB, by prediction"))
    return StageResult("joint", 10_000, predictor_of("cpu", Cluster(2, 2), CPU), found)


def test_the_page_has_every_setting(result: StageResult, tmp_path: Path) -> None:
    page, content = tmp_path / "report.html", calibration(CONFIG, CPU, 2, {"torch": "2"}, [result])
    best = result.found.best
    assert best == setting(4)
    write_page(
        page, result.predictor.config, CPU, {"torch": "2"}, [result], best, content, ["tolktrain", "tune", "<c>"]
    )
    text = page.read_text()
    for trial in result.found.trials:
        assert trial.setting.name in text
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text and "tune &#39;&lt;c&gt;&#39;" in text
    assert "needs 9.0 of 1.0 GiB, by prediction" in text
    assert "1.90x the configuration" in text  # over the median of both repetitions
    assert text.count("<svg") == 2 and "disqualified: t 1, p 1, ZeRO 3, micro batch 2" in text
    values = text[text.index("The fastest with each value") : text.index("What each knob brings")]
    assert "<td>ZeRO stage</td><td>2</td><td>t 1, p 1, ZeRO 2, micro batch 1</td><td>2,731</td>" in values
    assert "recomputation" not in values, "it was never used"
    micro_batch = text[text.index("What each knob brings") :]
    assert "<td>micro batch</td><td>2</td><td>4</td><td>+90.5 %</td>" in micro_batch


def test_remarks_and_tables(result: StageResult) -> None:
    lines = remarks(result.found)
    assert lines[0] == "differences under 10.0 % are noise (repetitions of the same settings)"
    assert "its first loss is 2.1, that of the others is 2.0" in lines[1]
    console = Console(record=True, width=160)
    print_stage(result, console)
    fits = {setting(1): 4, setting(1, 3): None}
    print_fits("joint", result.found, fits, result.predictor, console)
    shown = console.export_text()
    assert "4,096" in shown and "none fits" in shown and "all of a rank's share" in shown
    rows = [line for line in shown.splitlines() if line.strip().startswith("t 1")]
    assert rows[0].split("ZeRO ")[1].startswith("1, micro batch 4"), "the fastest first"
    assert not any("micro batch 2" in row and "ZeRO 3" in row for row in rows), "another loss is no rate"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "middle"], "--stage 'middle' is no stage of the configuration; it has adapter, joint"),
        (["--steps", "0"], "--steps 0 is too small; use 1 or more"),
        (["--trials", "0"], "--trials 0 is too small; use 1 or more"),
        (["--processes", "0"], "--processes 0 is too small; use 1 or more"),
        (["--memory", "-1"], "--warmup must not be negative, and --limit and --memory must be above 0"),
    ],
)
def test_bad_options_give_2_before_anything_is_started(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert cli.main(["tune", CONFIG, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
