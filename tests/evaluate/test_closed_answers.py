"""Answers to questions: an oracle, a constant and shuffled answers, intervals, and a run from its base to its table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_tree, write_run

from tolktrain.cli import main
from tolktrain.config.load import load_config
from tolktrain.data.batch import collate
from tolktrain.data.sequences import SequenceWriter
from tolktrain.data.strategies.base import Modality
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.evaluate.closed_answers.measure import DIRECTIONS, Answers, right_answers, summarize
from tolktrain.evaluate.closed_answers.questions import Candidate, Question, read_questions
from tolktrain.evaluate.closed_answers.score import best_constant, first_candidate, likeliest, prompt, score_candidates
from tolktrain.generate.context import Context
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

VOCABULARY = Vocabulary(50, 0, 60, 1, ("<|user|>", "<|assistant|>"))
SHIPPED = Vocabulary(1024, 0, 500, 1, ("<|user|>", "<|assistant|>"))  # of the quickstart
USER, ASSISTANT = 53, 54
WORDS = ("Mia", "Tom", "Ben", "Zoe")


def _turn(role: str, ids: list[int], units: list[int], num_codebooks: int = 1) -> Turn:
    """Codebook k has the units of the first one plus k."""
    rows = np.array(units, np.uint16)[:, None] + np.arange(num_codebooks, dtype=np.uint16)
    return Turn(role, np.array(ids, np.uint32), rows, np.ones(len(units), np.uint16))


def _questions(count: int = 40, stories: int = 20, num_codebooks: int = 1) -> list[Question]:
    """Candidate w of a question has the text ids [9, 10 + w] and the units [5, 20 + w] + w more."""
    candidates = tuple(
        Candidate(word, _turn("assistant", [9, 10 + place], [5, 20 + place, *range(30, 30 + place)], num_codebooks))
        for place, word in enumerate(WORDS)
    )
    return [
        Question(
            f"q{number}",
            "held",
            f"story{number % stories}",
            "hero",
            WORDS[(number * number) % 4 if number % 3 else 0],
            _turn("user", [1, 2, 3 + number % 5], [1, 2, 3, 4 + number % 7, *range(number % 3)], num_codebooks),
            candidates,
        )
        for number in range(count)
    ]


QUESTIONS = _questions()


def test_prompts_as_tokens() -> None:
    question = QUESTIONS[1]
    text, speech = (prompt(question, modality, VOCABULARY) for modality in ("text", "speech"))
    assert text.tokens.tolist() == [[USER, 1, 2, 4, 0, ASSISTANT]] and not text.is_speech.any()
    assert speech.tokens.tolist() == [[USER, 1, 2, 3, 5, 0, 60, ASSISTANT]]
    assert speech.is_speech.tolist() == [False, *[True] * 6, False]


class Favouring:
    """Steps whose likeliest continuation of the question number n is its candidate `choose(n)`; counts from 0 over all
    calls."""

    def __init__(self, choose: Callable[[int], int], answered_in: str) -> None:
        self._choose, self._answered_in = choose, answered_in
        self._number = 0
        self._rows: list[tuple[list[int], list[int]]] = []  # what is wanted, and what was added

    def begin(self, contexts: Sequence[Context]) -> torch.Tensor:
        self._rows = []
        for _ in contexts:
            turn = QUESTIONS[self._number].candidates[self._choose(self._number)].turn
            ids = turn.text_ids if self._answered_in == "text" else turn.units[:, 0]
            eos = VOCABULARY.text_eos if self._answered_in == "text" else VOCABULARY.speech_eos
            self._rows.append(([*ids.tolist(), eos], []))
            self._number += 1
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [(self._rows[row][0], list(self._rows[row][1])) for row in rows]

    def extend(self, columns: np.ndarray) -> torch.Tensor:
        for (_, added), column in zip(self._rows, columns, strict=True):
            added.append(int(column[0]))
        return self._logits()

    def _logits(self) -> torch.Tensor:
        logits = torch.zeros(len(self._rows), VOCABULARY.speech_vocab_size)
        for row, (wanted, added) in enumerate(self._rows):
            if len(added) < len(wanted) and added == wanted[: len(added)]:
                logits[row, wanted[len(added)]] = 5.0
        return logits if self._answered_in == "text" else logits[:, None]


@pytest.mark.parametrize("modality", ["text", "speech"])
def test_oracle_constant_and_shuffled_answers(modality: Modality) -> None:
    shuffled = np.random.default_rng(0).permutation(len(QUESTIONS))
    choosers: dict[str, Callable[[int], int]] = {
        "oracle": lambda number: QUESTIONS[number].right,
        "constant": lambda number: 0,
        "shuffled": lambda number: QUESTIONS[shuffled[number]].right,
    }
    accuracies = {}
    for name, choose in choosers.items():
        decoder = Favouring(choose, modality)
        scores = [
            row
            for begin in range(0, len(QUESTIONS), 7)
            for row in score_candidates(decoder, QUESTIONS[begin : begin + 7], "speech", modality, VOCABULARY)
        ]
        answers = Answers(tuple(likeliest(row) for row in scores))
        accuracies[name] = right_answers(QUESTIONS, answers).mean()
    share = [np.mean([question.answer == word for question in QUESTIONS]) for word in WORDS]
    assert accuracies["oracle"] == 1.0
    assert accuracies["constant"] == share[0] == best_constant(QUESTIONS) == max(share)
    expected = np.mean([QUESTIONS[i].answer == QUESTIONS[j].answer for i, j in enumerate(shuffled)])
    assert accuracies["shuffled"] == expected < 1.0


@pytest.mark.parametrize("changes", [{}, {"num_codebooks": 3, "output_adapter_layers": 0}])
@pytest.mark.parametrize(
    ("asked_in", "answered_in"), [("text", "text"), ("speech", "text"), ("speech", "speech"), ("text", "speech")]
)
def test_likelihoods_are_those_of_whole_sequences(
    changes: dict[str, Any], asked_in: Modality, answered_in: Modality
) -> None:
    """Questions of different lengths, and answers of different lengths: one sequence for each pair, in one pass."""
    model = _small_model(**changes)
    num_codebooks = model.architecture.num_codebooks
    vocabulary = Vocabulary(50, 0, 60, num_codebooks, ("<|user|>", "<|assistant|>"))
    questions = _questions(3, num_codebooks=num_codebooks)
    found = score_candidates(make_decoder(model, answered_in, 100), questions, asked_in, answered_in, vocabulary)
    for question, row in zip(questions, found, strict=True):
        assert len(row) == len(question.candidates)
        for candidate, value in zip(question.candidates, row, strict=True):
            writer = SequenceWriter(vocabulary, 60)
            for role, turn, modality in ((USER, question.asked, asked_in), (ASSISTANT, candidate.turn, answered_in)):
                writer.special(role)
                scored = role == ASSISTANT
                if modality == "text":
                    writer.text(np.append(turn.text_ids.astype(np.int64), 0), scored=scored)
                else:
                    eos = np.full((1, num_codebooks), 60)
                    writer.speech(np.concatenate([turn.units.astype(np.int64), eos]), scored=scored)
            positions = len(candidate.turn.text_ids) + 1
            if answered_in == "speech":
                positions = len(candidate.turn.units) + num_codebooks
            nll = model.token_nll(ModelInputs.from_batch(collate([writer.finish("one", "answer_text")])))
            assert value == pytest.approx(-float(nll.detach().double().sum()) / positions, abs=2e-5)
    assert len({round(float(value), 4) for row in found for value in row}) == 12  # of 3 questions, all differ


def _small_model(**changes: Any) -> SmolTolk:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "ffn_hidden_size": 48,
        "text_vocab_size": 50,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "tie_text_embeddings": True,
        "initializer_range": 0.2,
        "num_units": 60,
        "num_codebooks": 1,
        "input_adapter_layers": 1,
        "output_adapter_layers": 1,
        "layer_pooling": "both",
        "residual": True,
        "special_tokens": ("<|user|>", "<|assistant|>"),
    }
    return SmolTolk(Architecture(**(sizes | changes)), 1).eval()


def test_a_likelihood_that_is_no_number() -> None:
    class Broken(Favouring):
        def _logits(self) -> torch.Tensor:
            return super()._logits() * torch.nan

    with pytest.raises(UserError, match=r"q0: .* not a finite number"):
        score_candidates(Broken(lambda number: 0, "text"), QUESTIONS[:2], "text", "text", VOCABULARY)


def test_equal_scores_are_no_answer() -> None:
    assert likeliest(np.array([-1.0, -1.0, -2.0])) is None and likeliest(np.array([-3.0, -1.0, -2.0])) == 1
    assert right_answers(QUESTIONS[:2], Answers((None, QUESTIONS[1].right))).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "word"),
    [(" It is Tom.", "Tom"), ("ben and Mia", "Ben"), ("It is Miami, Zoe's", None), ("", None), ("the MIA!", "Mia")],
)
def test_the_answer_word_of_a_text(text: str, word: str | None) -> None:
    place = first_candidate(text, QUESTIONS[0])
    assert (None if place is None else WORDS[place]) == word


def test_intervals_are_those_of_a_bootstrap_over_stories() -> None:
    rng = np.random.default_rng(3)
    tuned = Answers(tuple(q.right if rng.random() < 0.8 else None for q in QUESTIONS))
    base = Answers(tuple(q.right if rng.random() < 0.3 else None for q in QUESTIONS))
    (row,) = summarize(QUESTIONS, DIRECTIONS[0], tuned, base)
    right = np.array([q.right == c for q, c in zip(QUESTIONS, tuned.chosen, strict=True)], float)
    before = np.array([q.right == c for q, c in zip(QUESTIONS, base.chosen, strict=True)], float)
    stories = [[i for i, q in enumerate(QUESTIONS) if q.group == name] for name in {q.group for q in QUESTIONS}]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([stories[i] for i in rng.integers(len(stories), size=len(stories))])
        means.append((right[drawn].mean(), before[drawn].mean(), (right - before)[drawn].mean()))
    low, high = np.quantile(np.array(means), [0.025, 0.975], axis=0)
    found = [(row["low"], row["high"]), (row["base_low"], row["base_high"])]
    found.append((row["difference_low"], row["difference_high"]))
    assert np.allclose(found, np.stack([low, high], axis=1), atol=0.03)
    assert row["accuracy"] == right.mean() and row["base"] == before.mean() and row["questions"] == 40
    assert row["by_kind"] == {"hero": right.mean()} and row["constant"] == best_constant(QUESTIONS)


def _instruct_tree(folder: Path, repository: Path, shipped: Path) -> dict[str, object]:
    """The shipped stages, with a tiny model and few tokens."""
    tree = tiny_tree(folder, repository)
    config = load_config(shipped)
    tree["run"]["name"] = "tuned"
    tree["model"]["special_tokens"] = list(config.model.special_tokens)
    names = [name for name in config.data.sets if name not in ("heldout_stories", "heldout_voices")]
    tree["data"]["sets"] = {name: {"path": config.data.sets[name].path} for name in names}
    tree["checkpoint"] = {"init_from": str(folder / "tiny")}
    tree["train"] |= {
        "sequence_length": config.train.sequence_length,
        "stages": [
            {
                "name": stage.name,
                "tokens": 4 * config.train.sequence_length,
                "learning_rate": 1e-3,
                "mixture": {
                    name: {"weight": entry.weight, "sets": dict(entry.sets)} for name, entry in stage.mixture.items()
                },
            }
            for stage in config.train.stages
        ],
    }
    tree["evaluation"] = {"train_set": "stories"}
    return tree


def _few_questions(folder: Path, into: Path) -> Path:
    into.mkdir()
    content = json.loads((folder / "questions.json").read_text())
    content["questions"] = content["questions"][:6]
    (into / "questions.json").write_text(json.dumps(content))
    for name in ("heldout_stories", "candidates"):
        (into / name).symlink_to(folder / name)
    return into


@pytest.mark.slow
def test_a_run_is_tuned_from_its_base_and_answers(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped mixture trains a few steps from a tiny base, whose answers are those of the weights it began from."""
    import soundfile
    import yaml

    base = write_run(tmp_path, tiny_tree(tmp_path, repository))
    tree = _instruct_tree(tmp_path, repository, repository / "configs" / "quickstart-instruct.yaml")
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tree))
    assert main(["train", str(tmp_path / "tuned.yaml")]) == 0
    questions = _few_questions(repository / "data" / "sample" / "dialogues", tmp_path / "questions")
    run = tmp_path / "tuned"
    capsys.readouterr()
    assert main(["evaluate", str(run), "--answers", str(questions)]) == 0
    assert "Answers to questions" in capsys.readouterr().out
    result = json.loads((run / "answers" / "answers.json").read_text())
    assert result["step"] == 2 and Path(result["base"]).is_relative_to(base)
    assert len(result["rows"]) == len(DIRECTIONS) and all("difference" in row for row in result["rows"])
    assert len(result["samples"]) == 2  # of two stories
    asked = {question.id: question.asked for question in read_questions(questions, SHIPPED)}
    for entry in result["samples"]:
        samples, rate = soundfile.read(run / "answers" / entry["files"]["question"])
        assert len(samples) / rate == pytest.approx(asked[entry["id"]].run_lengths.sum() / 25, abs=0.1)
        assert np.sqrt(np.mean(samples**2)) > 0.01
    lines = [json.loads(line) for line in (run / "answers" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(DIRECTIONS) * 6
    for row in result["rows"]:
        of_row = [line for line in lines if all(line[key] == row[key] for key in ("asked_in", "answered_in", "judge"))]
        for model, key in (("model", "accuracy"), ("base", "base")):
            right = [line["chosen"] == line["answer"] for line in of_row if line["model"] == model]
            assert np.mean(right) == pytest.approx(row[key])
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Questions and answers" in page and "data:audio/wav" in page


def test_questions_that_do_not_fit(tmp_path: Path, repository: Path) -> None:
    folder = repository / "data" / "sample" / "dialogues"
    assert len({question.kind for question in read_questions(folder, SHIPPED)}) == 3
    changed = _few_questions(folder, tmp_path / "questions")
    content = json.loads((changed / "questions.json").read_text())
    mistakes = (
        ({"questions": [content["questions"][0] | {"answer": "Nobody"}]}, "no candidate of the kind"),
        ({"questions": [content["questions"][0] | {"record": "none"}]}, "has no conversation of this id"),
        ({"questions": [content["questions"][0] | {"set": "../x"}]}, "set"),
        ({"candidates": {"hero": [{"word": "Mia", "utterance": 0}]}}, "at least two candidates"),
    )
    for change, message in mistakes:
        (changed / "questions.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            read_questions(changed, SHIPPED)
    with pytest.raises(UserError, match="special token"):
        prompt(read_questions(folder, SHIPPED)[0], "text", Vocabulary(1024, 0, 500))
    with pytest.raises(UserError, match=r"questions.json does not exist"):
        read_questions(tmp_path, SHIPPED)
