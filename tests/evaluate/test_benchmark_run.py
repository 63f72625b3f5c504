"""Benchmarks of a tiny random model, from recordings to the table."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import Replicas, write_released

from tolktrain import cli
from tolktrain.compare.run import compare
from tolktrain.config.suite import BenchmarkConfig, SuiteConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.evaluate import recordings
from tolktrain.evaluate.benchmark_run import evaluate_benchmarks
from tolktrain.evaluate.benchmarks.released import read_sequences
from tolktrain.evaluate.rules import Rule
from tolktrain.evaluate.score_files import read_scores
from tolktrain.evaluate.scorer import Scorer
from tolktrain.evaluate.tables import pair_points
from tolktrain.evaluate.unit_cache import UnitCache, content_key
from tolktrain.model.inputs import ModelInputs
from tolktrain.runs.load_model import load_model

NAMES = ("swuggy", "sblimp", "prosaudit", "sstorycloze", "tstorycloze", "salmon")


def _suite(replicas: Replicas, cache: Path, **changes: object) -> SuiteConfig:
    entries = [BenchmarkConfig(name=name, folder=str(replicas.folder(name))) for name in NAMES]
    entries.append(BenchmarkConfig(name="tstorycloze", folder=str(replicas.folder("parts")), label="parts"))
    entries.append(BenchmarkConfig(name="salmon", folder=str(replicas.folder("parquet")), label="parquet"))
    return SuiteConfig(benchmarks=tuple(entries), unit_cache=str(cache), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def unit_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of units that the tests share."""
    return tmp_path_factory.mktemp("units")


def test_table_files_and_cache(
    tiny_run: Path, replicas: Replicas, unit_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluate_benchmarks(tiny_run, _suite(replicas, unit_cache))
    assert json.loads((tiny_run / "benchmarks.json").read_text()) == json.loads(json.dumps(found))
    rows = found["rows"]
    names = {(row["benchmark"], row["set"], row["measure"]) for row in rows}
    assert {("swuggy", "dev", "all"), ("swuggy", "dev", "in vocabulary")} <= names
    assert {("sblimp", "test", f"mean over {what}") for what in ("pairs", "types")} <= names
    assert {("prosaudit", "dev", kind) for kind in ("lexical", "protosyntax")} <= names
    assert {("parts", f"{a} to {b}", "accuracy") for a in ("text", "speech") for b in ("text", "speech")} <= names
    parts = ("bg_alignment", "gender_consistency", "rir_consistency", "sentiment_consistency", "speaker_consistency")
    assert {("salmon", part, "accuracy") for part in parts} <= names
    words = {row["measure"]: (row["pairs"], row["ids"]) for row in rows if row["benchmark"] == "swuggy"}
    assert words == {"all": (36, 9), "in vocabulary": (32, 8)}  # four voices; a word is not in the vocabulary
    same = [row["accuracy"] for row in rows if row["set"] == "speaker_consistency" and row["rule"] == "whole_mean"]
    assert len(same) == 2 and same[0] == same[1]  # as files and as Parquet
    for row in rows:
        assert row["ties"] == 0.5 and row["low"] <= row["accuracy"] <= row["high"]
        assert {"unigram", "bigram", "rule"} <= row.keys()
    slam = next(r for r in rows if r["benchmark"] == "sblimp" and r["rule"] == "whole_mean_closing_eos")
    assert {entry["model"] for entry in slam["published"]} == {"Slam", "Slam (scaled)"}
    assert all(not row["published"] for row in rows if row["rule"] == "whole_mean")
    _check_that_score_files_give_the_table(tiny_run, rows)
    _check_submission(tiny_run)
    _check_comparison_with_a_copy(tiny_run, rows)

    # The second time, no recording is encoded; shuffled batches of another size give the same table.
    monkeypatch.setattr(recordings, "collapse", lambda frames: pytest.fail("a recording was encoded again"))
    again = evaluate_benchmarks(tiny_run, _suite(replicas, unit_cache, batch_tokens=100))
    for one, other in zip(rows, again["rows"], strict=True):
        assert one == other


def _check_that_score_files_give_the_table(run: Path, rows: list[dict]) -> None:
    for row in rows:
        for scorer, suffix in (("accuracy", ""), ("bigram", ".bigram"), ("unigram", ".unigram")):
            scores = read_scores(run / "scores" / f"{row['benchmark']}{suffix}.jsonl")[row["set"]]
            points = pair_points(scores.pairs, scores.by_rule(Rule.parse(row["rule"])))
            if row["measure"] in ("all", "accuracy", "mean over pairs"):
                by_id: dict[str, list[float]] = {}
                for pair, value in zip(scores.pairs, points, strict=True):
                    by_id.setdefault(pair.id, []).append(value)
                assert row[scorer] == pytest.approx(np.mean([np.mean(values) for values in by_id.values()]), rel=1e-12)


def _check_comparison_with_a_copy(run: Path, rows: list[dict]) -> None:
    copy = shutil.copytree(run, run.with_name("copy"))
    compared = {
        tuple(row[key] for key in ("benchmark", "set", "measure", "rule", "ids")): row
        for row in compare([run, copy])["benchmarks"]
    }
    assert len(compared) == len(rows)
    for row in rows:
        mine, its = compared[tuple(row[key] for key in ("benchmark", "set", "measure", "rule", "ids"))]["runs"]
        for key in ("accuracy", "low", "high"):
            assert mine[key] == pytest.approx(row[key], rel=1e-12) and its[key] == mine[key]
        assert its["against_first"]["difference"] == its["against_first"]["better"] == 0


def _check_submission(run: Path) -> None:
    lines = (run / "scores" / "zerospeech" / "swuggy" / "lexical" / "dev.txt").read_text().splitlines()
    scores = read_scores(run / "scores" / "swuggy.jsonl")["dev"].by_rule(Rule.parse("whole_mean"))
    assert {name: float(value) for name, value in (line.split(" ") for line in lines)} == scores
    assert (run / "scores" / "zerospeech" / "sblimp" / "syntactic" / "test.txt").is_file()
    assert (run / "scores" / "zerospeech" / "prosaudit" / "english_dev.txt").is_file()


@pytest.mark.parametrize(("sign", "expected"), [(0.0, 0.5), (1.0, 1.0), (-1.0, 0.0)])
def test_oracles(
    tiny_run: Path,
    replicas: Replicas,
    unit_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    sign: float,
    expected: float,
) -> None:
    """A scorer without knowledge is exactly half right, one that knows is always right, its negative never."""

    def knows(self: Scorer, batch: Batch) -> np.ndarray:
        scored = (batch.text_pred | batch.speech_pred).numpy()
        right = np.array([[name in replicas.correct] for name in batch.record_ids])
        return (1.1 - sign * 0.3 * right) * scored

    monkeypatch.setattr(Scorer, "token_nll", knows)
    rows = evaluate_benchmarks(tiny_run, _suite(replicas, unit_cache))["rows"]
    assert {row["accuracy"] for row in rows} == {expected}


def test_authors_rule_in_four_directions(tiny_run: Path, tmp_path: Path) -> None:
    """Their rule from its definition: only the continuation is scored, without EOS, as a mean per token; a switch
    between modalities; nothing in front. One forward pass per token."""
    folder = tmp_path / "scloze"
    write_released(folder, "<u8")
    entry = BenchmarkConfig(name="tstorycloze", folder=str(folder))
    rows = evaluate_benchmarks(tiny_run, SuiteConfig(benchmarks=(entry,)))["rows"]
    assert len(rows) == 4 and {row["rule"] for row in rows} == {"continuation_mean_no_context"}
    found = read_scores(tiny_run / "scores" / "tstorycloze.jsonl")
    model, _, _ = load_model(tiny_run)
    tokens = {"text": read_sequences(folder / "smollm"), "speech": read_sequences(folder / "mhubert25hzl11")}
    numbers = {"incorrect": 0, "prompt": 1, "correct": 2}  # rows of a story, as `write_released` orders them
    for source in tokens:
        for target in tokens:
            scores = found[f"{source} to {target}"].by_rule(Rule.parse("continuation_mean_no_context"))
            right = []
            for story in range(2):
                values = {}
                for side in ("correct", "incorrect"):
                    prompt = tokens[source][3 * story + numbers["prompt"]]
                    ending = tokens[target][3 * story + numbers[side]]
                    values[side] = _mean_log_likelihood(model, prompt, ending, source, target)
                    assert scores[f"s{story}_{side}"] == pytest.approx(values[side], rel=1e-6, abs=1e-6)
                right.append(values["correct"] > values["incorrect"])
            row = next(row for row in rows if row["set"] == f"{source} to {target}")
            assert row["accuracy"] == np.mean(right)


def _mean_log_likelihood(
    model: torch.nn.Module, prompt: np.ndarray, ending: np.ndarray, source: str, target: str
) -> float:
    switch = [1024 + 2] if source != target else []
    ids = [*prompt, *switch, *ending]
    speech = [source == "speech"] * len(prompt) + [False] * len(switch) + [target == "speech"] * len(ending)
    total = 0.0
    for place in range(len(prompt) + len(switch), len(ids)):
        before = torch.tensor(ids[:place])[None, None]
        logits = model.next_logits(ModelInputs.for_next(before, torch.tensor(speech[:place])[None]))  # type: ignore[operator]
        chosen = logits.speech[0, 0] if target == "speech" else logits.text[0]
        total += float(torch.log_softmax(chosen.double(), dim=-1)[ids[place]])
    return total / len(ending)


def test_unreadable_and_missing_recordings(
    tiny_run: Path, replicas: Replicas, unit_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    for path in replicas.folder("tstorycloze").glob("*.wav"):
        (folder / path.name).symlink_to(path)
    broken = folder / "2_story-1_correct.wav"
    broken.unlink()
    entry = BenchmarkConfig(name="tstorycloze", folder=str(folder))
    with pytest.raises(UserError, match=r"1 missing \(\*_story-1_correct\.wav\).*allow_incomplete"):
        evaluate_benchmarks(tiny_run, SuiteConfig(benchmarks=(entry,), unit_cache=str(unit_cache)))
    broken.write_bytes(b"RIFF no audio")
    with pytest.raises(UserError, match=r"1 unreadable \(.*2_story-1_correct\.wav"):
        evaluate_benchmarks(tiny_run, SuiteConfig(benchmarks=(entry,), unit_cache=str(unit_cache)))
    allowed = SuiteConfig(benchmarks=(entry,), unit_cache=str(unit_cache), allow_incomplete=True)
    found = evaluate_benchmarks(tiny_run, allowed)
    assert found["problems"]["tstorycloze"] == {"missing": 0, "doubled": 0, "extra": 0, "unreadable": 1}
    assert {row["ids"] for row in found["rows"]} == {1}


def test_cache_survives_damage_and_keeps_tokenizers_apart(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, "a" * 64, 1)
    keys = [content_key(text.encode()) for text in ("one", "two")]
    for key, length in zip(keys, (3, 5), strict=True):
        cache.add(key, np.arange(length, dtype=np.uint16)[:, None])
    cache.save()
    other = UnitCache(tmp_path, "a" * 64, 1)
    assert [other.get(key).tolist() for key in keys] == [[[0], [1], [2]], [[0], [1], [2], [3], [4]]]  # type: ignore[union-attr]
    assert UnitCache(tmp_path, "b" * 64, 1).get(keys[0]) is None
    assert UnitCache(tmp_path, "a" * 64, 2).get(keys[0]) is None  # another shape: not used
    [path] = (tmp_path / ("a" * 64)).iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert UnitCache(tmp_path, "a" * 64, 1).get(keys[0]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmarks", "swuggy"], "not of the form NAME=FOLDER"),
        (["--benchmarks", "sblump=."], "unknown benchmark 'sblump'; known are swuggy, sblimp"),
        (["--benchmarks", "sblimp=nowhere"], "nowhere is no folder; it should hold sLM21-dataset"),
        (["--benchmarks", "sblimp=.", "sblimp=."], "two benchmarks named sblimp"),
        (["--allow-incomplete"], "--allow-incomplete concerns benchmarks"),
        (["--suite", "suite.yaml", "--benchmarks", "sblimp=."], "exclude each other"),
        (["--suite", "suite.yaml"], "suite.yaml:1: benchmarks.0.rule is not a known key; did you mean rules?"),
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
    Path("suite.yaml").write_text("benchmarks: [{name: sblimp, folder: ., rule: whole_mean}]\n")
    assert cli.main(["evaluate", str(tiny_run), *options]) == 2
    assert message in capsys.readouterr().err


def test_command_line_prints_the_table(
    tiny_run: Path,
    replicas: Replicas,
    unit_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    suite = tiny_run / "suite.yaml"
    folder = replicas.folder("prosaudit")
    suite.write_text(
        f"unit_cache: {unit_cache}\nbenchmarks:\n- {{name: prosaudit, folder: {folder}, rules: [whole_sum]}}\n"
    )
    assert cli.main(["evaluate", str(tiny_run), "--suite", str(suite)]) == 0
    printed = capsys.readouterr().out
    for word in ("prosaudit", "dev", "protosyntax", "whole_sum", "ties", "bigram"):
        assert word in printed
