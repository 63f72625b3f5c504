"""Benchmarks of questions: layouts, what is missing, oracles, and the answers of a model that knows some by heart."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tuned_run import ROLES, Tuned, write_tuned

from tolktrain.compare.paired import paired_measure
from tolktrain.config.suite import BenchmarkConfig, SuiteConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.evaluate.answers import named_choice
from tolktrain.evaluate.benchmark_run import evaluate_benchmarks
from tolktrain.evaluate.benchmarks.base import Measure, Pair
from tolktrain.evaluate.benchmarks.spoken_arc import read as read_arc
from tolktrain.evaluate.benchmarks.voxeval import read as read_voxeval
from tolktrain.evaluate.item_sequences import Part, build_exchange
from tolktrain.evaluate.score_files import read_scores
from tolktrain.evaluate.scorer import Scorer
from tolktrain.evaluate.tables import as_choices, measured
from tolktrain.vocabulary import Vocabulary

SUBJECTS = {
    "astronomy_4o": [
        ("Where is the sun?", "in the sky", "at sea", "under ground", "in town", "A"),
        ("What is red?", "the moon", "mars", "venus", "a comet", "B"),
    ],
    "biology_4o": [('Who, then, "sings"?', "a stone", "the rain", "a fish", "the bird", "D")],
}
VOICES = ("alloy", "echo")


def write_voxeval(root: Path, recordings: list[np.ndarray] | None = None) -> Path:
    """A replica as VoxEval is distributed; with empty recordings, or with these in turn."""
    spoken = iter(recordings or [])
    for subject, rows in SUBJECTS.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        (root / "test").mkdir(parents=True, exist_ok=True)
        (root / "test" / f"{subject}.csv").write_text(text.getvalue())
        for voice in VOICES:
            folder = root / "test" / voice / subject
            folder.mkdir(parents=True)
            for number in range(len(rows)):
                for kind in ("question", "answer"):
                    path = folder / f"{number:08d}_{kind}.mp3"
                    path.touch()
                    if recordings is not None and kind == "question":
                        soundfile.write(path, next(spoken), 16_000)
    (root / "all_fewshot_examples").mkdir()
    return root


def arc_line(number: int, **changes: Any) -> dict[str, Any]:
    """A question with three choices."""
    return {
        "id": f"q{number}",
        "question": f"which is {number}?",
        "choices": {"text": [f"{letter} {number}" for letter in "xyz"], "label": ["1", "2", "3"]},
        "answerKey": "2",
        **changes,
    }


def test_voxeval_is_read_by_rows_and_names(tmp_path: Path) -> None:
    found = read_voxeval(write_voxeval(tmp_path / "v"))
    assert [own.name for own in found.sets] == ["alloy, speech to text", "echo, speech to text"]
    assert not any(found.problems.counts.values())
    own = found.sets[1]
    gold = {pair.id: pair.correct for pair in own.pairs}
    assert gold == {
        "astronomy_4o/0": "echo/astronomy_4o/0/A",
        "astronomy_4o/1": "echo/astronomy_4o/1/B",
        "biology_4o/0": "echo/biology_4o/0/D",
    }
    assert len(own.pairs) == 9 and len(own.items) == 12
    question, choice = own.items["echo/astronomy_4o/1/C"]
    assert question.source.path.name == "00000001_question.mp3" and choice.source == "venus"  # type: ignore[union-attr]
    assert read_voxeval(tmp_path / "v" / "test").sets[0].items.keys() == found.sets[0].items.keys()


def test_what_voxeval_lacks_is_named(tmp_path: Path) -> None:
    root = write_voxeval(tmp_path / "v")
    folder = root / "test" / "alloy" / "astronomy_4o"
    (folder / "00000000_question.mp3").unlink()
    (folder / "00000001_question.wav").touch()
    (folder / "00000007_question.mp3").touch()
    (root / "test" / "echo" / "unknown_4o").mkdir()
    found = read_voxeval(root)
    assert found.problems.missing == ("alloy/astronomy_4o/00000000_question.mp3",)
    assert found.problems.doubled == ("alloy/astronomy_4o/00000001_question.wav",)
    assert found.problems.extra == ("alloy/astronomy_4o/00000007_question.mp3", "echo/unknown_4o")
    assert {pair.id for pair in found.sets[0].pairs} == {"astronomy_4o/1", "biology_4o/0"}
    (root / "test" / "biology_4o.csv").write_text("what?,a,b,c,d,E\n")
    with pytest.raises(UserError, match=r"biology_4o\.csv, row 0: expected a question, four choices"):
        read_voxeval(root)
    with pytest.raises(UserError, match=r"holds no tables SUBJECT\.csv"):
        read_voxeval(tmp_path)


def test_spoken_arc_has_the_directions_for_which_there_are_files(tmp_path: Path) -> None:
    audio = ["c/0-1.wav", "c/0-2.wav", "c/0-3.wav"]
    (tmp_path / "c").mkdir()
    for name in ("q0.flac", *audio, "extra.wav"):
        (tmp_path / name).touch()
    choices = arc_line(0)["choices"]
    lines = [
        arc_line(0, audio="q0.flac", voice="a", choices={**choices, "audio": audio}),
        arc_line(0, audio="q0.flac", voice="b"),
        arc_line(0, voice="a"),
        arc_line(1),
        arc_line(2, audio="none.wav"),
    ]
    (tmp_path / "ARC-Easy.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_arc(tmp_path)
    assert {own.name: sorted({(pair.id, pair.voice) for pair in own.pairs}) for own in found.sets} == {
        "ARC-Easy, speech to text": [("q0", "a"), ("q0", "b")],
        "ARC-Easy, speech to speech": [("q0", "a")],
        "ARC-Easy, text to text": [("q0", "a"), ("q0", "b"), ("q1", "")],
        "ARC-Easy, text to speech": [("q0", "a")],
    }
    assert found.problems.missing == ("none.wav",) and found.problems.extra == ("extra.wav",)
    assert found.problems.doubled == ("ARC-Easy.jsonl: q0, voice a",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answerKey": "4"}, "answerKey is '4', which is none of 1, 2, 3"),
        ({"question": ""}, "question must be a text that is not empty"),
        ({"choices": {"text": ["a"], "label": ["1"]}}, "at least two different labels"),
        ({"choices": {"text": ["a", "b"], "label": ["1", "1"]}}, "at least two different labels"),
        ({"choices": {"text": ["a", "b", "c"], "label": ["1", "2"]}}, "as many entries in each list"),
        ({"choices": {"text": ["a", ""], "label": ["1", "2"]}}, "choices.text must be a list of texts"),
        ({"choices": {"label": ["1", "2"]}}, "choices has no text"),
        ({"choices": ["a"]}, "choices must be an object"),
        ({"audio": "../q.wav"}, "climbs"),
        ({"voice": 3}, "voice must be a text"),
        ({"answer": "1"}, "the key 'answer' is unknown"),
    ],
)
def test_lines_that_are_no_questions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(arc_line(0))}\n\n{json.dumps(arc_line(1, **changes))}")
    with pytest.raises(UserError, match=rf"a\.jsonl.*line 3.*{message}"):
        read_arc(tmp_path)


def test_a_choice_counts_if_it_beats_all_others() -> None:
    """By hand: won, lost to one, tied with one, tied with all, and two voices of an id."""
    points = {"a": (1, 1, 1), "b": (1, 0, 1), "c": (1, 0.5, 1), "d": (0.5, 0.5, 0.5), "e": (0.5, 0, 1)}
    pairs = [Pair(name, f"{name}0", f"{name}{n}") for name in points for n in range(1, 4)]
    pairs += [Pair("a", f"v{n}", f"w{n}", voice="other") for n in range(3)]
    won = np.array([*(value for own in points.values() for value in own), 0, 0, 0], float)
    measure = Measure("accuracy", choice=True)
    _, values = as_choices(measure, pairs, won)
    assert values.tolist() == [1, 0, 0.5, 0.25, 0, 0]
    found = measured(measure, pairs, won)
    assert found is not None and (found["pairs"], found["ids"]) == (6, 5)
    assert found["accuracy"] == pytest.approx((0.5 + 0 + 0.5 + 0.25 + 0) / 5)
    against = paired_measure(measure, pairs, won, np.ones(len(won)))
    assert against["difference"] == pytest.approx(1 - found["accuracy"]) and against["better"] == 5


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("The answer is C.", "C"),
        ("The correct answer is: (d) the bird", "D"),
        ("the bird", "D"),
        ("The bird!", "D"),
        ("I think the answer is A. No, the answer is the rain.", "B"),
        ("Option C", "C"),
        ("(A) a stone", "A"),
        ("A stone", "A"),
        ("A lion", None),
        ("", None),
        ("a stone or the rain", None),
        ("same", None),
    ],
)
def test_which_choice_an_answer_names(text: str, choice: str | None) -> None:
    choices = {"A": "a stone", "B": "the rain", "C": "Same.", "D": "the bird", "E": "same"}
    assert named_choice(text, choices) == choice


def test_an_exchange_is_two_turns() -> None:
    """Roles, EOS of both turns, and the spans of question and answer; in any modality."""
    vocabulary = Vocabulary(100, 0, 50, 1, tuple(ROLES))
    asked, said = np.array([[7], [8]]), np.array([5, 6, 9])
    item = build_exchange("q", [Part("prompt", "speech", asked), Part("continuation", "text", said)], vocabulary)
    user, assistant = vocabulary.role_token("user"), vocabulary.role_token("assistant")
    assert item.sequence.tokens[0].tolist() == [user, 7, 8, 50, assistant, 5, 6, 9, 0]
    assert item.spans == ((1, 3), (5, 8)) and item.has_closing_eos and item.sequence.length == 9
    assert item.sequence.is_speech.tolist() == [False, True, True, True, *[False] * 5]
    three = Vocabulary(100, 0, 50, 3, tuple(ROLES))
    units = np.arange(6).reshape(2, 3)
    item = build_exchange("q", [Part("prompt", "text", said), Part("continuation", "speech", units)], three)
    assert item.spans == ((1, 4), (6, 10)) and not item.has_closing_eos and item.sequence.length == 10


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Tuned:
    """A model that knows two questions and their answers."""
    folder = tmp_path_factory.mktemp("tuned")
    heard = {"role": "user", "content": [{"type": "audio", "path": "q.wav"}]}
    talks = [
        [heard, {"role": "assistant", "content": "In the tree."}],
        [{"role": "user", "content": "Does it sing?"}, {"role": "assistant", "content": "2. no"}],
    ]
    found = write_tuned(folder, repository, "answer_text", talks)
    choices = {"text": ["at sea", "in the tree", "in town", "no"], "label": ["1", "2", "3", "4"]}
    lines = [
        {"id": "where", "question": "Where?", "choices": choices, "answerKey": "2", "audio": "q.wav"},
        {"id": "sings", "question": "Does it sing?", "choices": choices, "answerKey": "4"},
    ]
    (folder / "arc").mkdir()
    (folder / "q.wav").rename(folder / "arc" / "q.wav")
    (folder / "arc" / "ARC-Easy.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return found


@pytest.mark.slow
def test_the_answers_of_a_model_that_knows_some(tuned: Tuned, tmp_path: Path) -> None:
    """By likelihood and by exact match; what it says is written."""
    entry = BenchmarkConfig(name="spoken_arc", folder=str(tuned.folder / "arc"))
    suite = SuiteConfig(benchmarks=(entry,), unit_cache=str(tmp_path))
    found = evaluate_benchmarks(tuned.run, suite)
    rows = {(row["set"], row["rule"]): row for row in found["rows"]}
    spoken, written = "ARC-Easy, speech to text", "ARC-Easy, text to text"
    assert rows[spoken, "exact_match"]["accuracy"] == 1.0 and rows[spoken, "exact_match"]["ids"] == 1
    # It says the label of another choice, and knows nothing of the other question in text.
    lines = [json.loads(line) for line in (tuned.run / "scores" / "spoken_arc.answers.jsonl").read_text().splitlines()]
    said = {(line["set"], line["id"]): line for line in lines}
    assert said[spoken, "where"]["text"] == "In the tree." and said[spoken, "where"]["ended"] == "EOS"
    assert said[written, "sings"]["choice"] == "2" and rows[written, "exact_match"]["accuracy"] < 1
    assert any("of 1 generated answers (text), 0 name no choice" in note for note in found["notes"])
    scores = read_scores(tuned.run / "scores" / "spoken_arc.jsonl")[spoken]
    (item,) = [score for name, score in scores.items["eos"].items() if name == "where/2"]
    assert len(item.segments) == 2 and item.segments[1].tokens < 8
    assert scores.measures[0].choice


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "expected"), [(0.0, 0.25), (1.0, 1.0), (-1.0, 0.0)])
def test_oracles(
    tiny_run: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sign: float,
    expected: float,
) -> None:
    """A scorer without knowledge is right in a quarter, one that knows always, its negative never; no role tokens."""
    samples, _ = soundfile.read(next((repository / "data" / "sample" / "prompts").glob("*.wav")))
    root = write_voxeval(tmp_path / "v", [samples[1_500 * n : 1_500 * n + 8_000] for n in range(6)])
    right = {f"{subject}/{n}/{row[5]}" for subject, rows in SUBJECTS.items() for n, row in enumerate(rows)}

    def knows(self: Scorer, batch: Batch) -> np.ndarray:
        scored = (batch.text_pred | batch.speech_pred).numpy()
        known = np.array([[name.partition("/")[2] in right] for name in batch.record_ids])
        return (1.1 - sign * 0.3 * known) * scored

    monkeypatch.setattr(Scorer, "token_nll", knows)
    entry = BenchmarkConfig(name="voxeval", folder=str(root), rules=("continuation_mean",))
    found = evaluate_benchmarks(tiny_run, SuiteConfig(benchmarks=(entry,), unit_cache=str(tmp_path / "units")))
    assert {row["accuracy"] for row in found["rows"]} == {expected}
    assert {(row["set"], row["measure"]) for row in found["rows"]} == {
        (f"{voice}, speech to text", measure) for voice in VOICES for measure in ("accuracy", "mean over subjects")
    }
    assert any("answers are not generated" in note for note in found["notes"])
