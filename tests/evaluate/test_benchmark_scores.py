"""From likelihoods to numbers: sequences of items, rules, score files, and the measures of the benchmarks."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from stub_model import VOCABULARY, random_nll

from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.evaluate import item_sequences
from tolktrain.evaluate.benchmarks.base import Measure, Pair
from tolktrain.evaluate.benchmarks.sblimp import LAYOUT as SENTENCES
from tolktrain.evaluate.benchmarks.swuggy import LAYOUT as WORDS
from tolktrain.evaluate.benchmarks.swuggy import frequency_band
from tolktrain.evaluate.item_sequences import ItemSequence, Part, build, score_items
from tolktrain.evaluate.rules import Context, ItemScore, Rule, SegmentScore
from tolktrain.evaluate.score_files import collect, read_scores, write_scores
from tolktrain.evaluate.tables import measured, pair_points
from tolktrain.vocabulary import Vocabulary

SWITCH, TEXT_EOS, SPEECH_EOS = VOCABULARY.switch, VOCABULARY.text_eos, VOCABULARY.speech_eos
TEXT = Part("prompt", "text", np.array([7, 8, 9]))
SPEECH = Part("continuation", "speech", np.array([[4], [5]]))
RULES = [
    f"{part}_{norm}{eos}{bare}"
    for part in ("whole", "continuation")
    for norm in ("mean", "sum")
    for eos in ("", "_closing_eos")
    for bare in ("", "_no_context")
]


def _by_token(batch: Batch) -> np.ndarray:
    """A likelihood that depends on the target alone: -log p of id i is i + 1, of speech i + 0.5."""
    scored = (batch.text_pred | batch.speech_pred).numpy()
    return (batch.targets[:, 0].numpy() + np.where(batch.speech_pred.numpy(), 0.5, 1.0)) * scored


def _score(parts: list[Part], context: Context, vocabulary: Vocabulary = VOCABULARY) -> ItemScore:
    return score_items([build("x", parts, context, vocabulary)], context, _by_token, vocabulary, 100)[0]


def test_sequence_has_eos_in_front_a_switch_and_a_closing_eos() -> None:
    built = build("x", [TEXT, SPEECH], "eos", VOCABULARY)
    assert built.sequence.tokens[0].tolist() == [TEXT_EOS, 7, 8, 9, SWITCH, 4, 5, SPEECH_EOS]
    assert built.sequence.scored.tolist() == [False, True, True, True, False, True, True, True]
    assert built.spans == ((1, 4), (5, 7)) and built.sequence.is_speech.tolist() == [False] * 5 + [True] * 3
    bare = build("x", [TEXT, SPEECH], "none", VOCABULARY)
    assert bare.sequence.tokens[0].tolist() == [7, 8, 9, SWITCH, 4, 5, SPEECH_EOS] and bare.spans == ((0, 3), (4, 6))
    same = build("x", [Part("prompt", "speech", np.array([[1], [2]])), SPEECH], "eos", VOCABULARY)
    assert same.sequence.tokens[0].tolist() == [SPEECH_EOS, 1, 2, 4, 5, SPEECH_EOS]


def test_every_rule_by_hand() -> None:
    """Targets cost their id + 1 (text) or + 0.5 (speech); EOS of speech is 50."""
    eos, bare = _score([TEXT, SPEECH], "eos"), _score([TEXT, SPEECH], "none")
    prompt, first, ending, closing = 8 + 9 + 10, 8, 4.5 + 5.5, 50.5
    expected = {
        "whole_mean": -(prompt + ending) / 5,
        "whole_sum": -(prompt + ending),
        "whole_mean_closing_eos": -(prompt + ending + closing) / 6,
        "whole_sum_closing_eos": -(prompt + ending + closing),
        "whole_mean_no_context": -(prompt - first + ending) / 4,
        "whole_sum_no_context": -(prompt - first + ending),
        "whole_mean_closing_eos_no_context": -(prompt - first + ending + closing) / 5,
        "whole_sum_closing_eos_no_context": -(prompt - first + ending + closing),
    }
    for bare_too in ("", "_no_context"):
        expected |= {
            f"continuation_mean{bare_too}": -ending / 2,
            f"continuation_sum{bare_too}": -ending,
            f"continuation_mean_closing_eos{bare_too}": -(ending + closing) / 3,
            f"continuation_sum_closing_eos{bare_too}": -(ending + closing),
        }
    assert set(expected) == set(RULES)
    for name, value in expected.items():
        rule = Rule.parse(name)
        assert rule.name == name
        assert rule.score(eos if rule.context == "eos" else bare) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["mean", "whole", "whole_mean_no_context_closing_eos", "continuation_mean_bos"])
def test_unknown_rule(name: str) -> None:
    with pytest.raises(UserError, match="unknown rule"):
        Rule.parse(name)


def test_rules_that_an_item_cannot_have_name_it() -> None:
    whole = [Part("whole", "speech", np.array([[3]]))]
    with pytest.raises(UserError, match="x has no continuation"):
        Rule.parse("continuation_mean").score(_score(whole, "eos"))
    with pytest.raises(UserError, match="x has no token"):
        Rule.parse("whole_mean_no_context").score(_score(whole, "none"))
    vocabulary = Vocabulary(100, 0, 50, num_codebooks=2)
    two = _score([Part("whole", "speech", np.array([[3, 4], [5, 6]]))], "eos", vocabulary)
    assert two.segments[0].tokens == 3  # two frames, and the delay of the second codebook
    with pytest.raises(UserError, match="x: with several codebooks the closing EOS"):
        Rule.parse("whole_mean_closing_eos").score(two)


@pytest.mark.parametrize(
    ("tokens", "message"), [(np.zeros((0, 1), int), "has no tokens"), (np.array([[50]]), "holds the id 50, outside")]
)
def test_items_that_cannot_be_scored_are_named(tokens: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=f"^story-3: .*{message}"):
        build("story-3", [Part("whole", "speech", tokens)], "eos", VOCABULARY)


def _items(count: int = 60) -> list[ItemSequence]:
    rng = np.random.default_rng(3)
    found = [
        build(f"i{n}", [Part("whole", "speech", rng.integers(0, 50, (rng.integers(1, 30), 1)))], "eos", VOCABULARY)
        for n in range(count - 1)
    ]
    return [*found, build("copy", found[0].parts, "eos", VOCABULARY)]


def _by_history(batch: Batch) -> np.ndarray:
    scored = (batch.text_pred | batch.speech_pred).numpy()
    history = np.cumsum(batch.tokens[:, 0].numpy(), axis=1)
    return (np.sin(history + batch.targets[:, 0].numpy()) + 2) * scored


def test_order_batch_size_and_ranks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items = _items()
    expected = score_items(items, "eos", _by_history, VOCABULARY, 200)
    shuffled = [items[place] for place in np.random.default_rng(0).permutation(len(items))]
    assert sorted(score_items(shuffled, "eos", _by_history, VOCABULARY, 200), key=lambda s: s.id) == sorted(
        expected, key=lambda s: s.id
    )
    for batch_tokens in (1, 37, 10_000):
        found = score_items(items, "eos", _by_history, VOCABULARY, batch_tokens)
        for one, other in zip(found, expected, strict=True):
            assert one.id == other.id and one.segments[0].sum == pytest.approx(other.segments[0].sum, rel=1e-12)
    for world_size in (2, 3):
        for scores in _on_ranks(world_size, items, monkeypatch):
            assert scores == expected


def _on_ranks(world_size: int, items: list[ItemSequence], monkeypatch: pytest.MonkeyPatch) -> list[list[ItemScore]]:
    """The result of every rank; ranks are threads, which exchange their values at a barrier."""
    barrier, values = threading.Barrier(world_size, timeout=300), {}
    rank_of = threading.local()

    def gather(value: object) -> list[object]:
        values[rank_of.value] = value
        barrier.wait()
        return [values[rank] for rank in range(world_size)]

    monkeypatch.setattr(item_sequences, "all_gather_objects", gather)
    results: dict[int, list[ItemScore]] = {}

    def work(rank: int) -> None:
        rank_of.value = rank
        results[rank] = score_items(items, "eos", _by_history, VOCABULARY, 200, rank, world_size)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world_size)]


def test_items_of_the_same_tokens_tie_exactly() -> None:
    scores = {score.id: score for score in score_items(_items(), "eos", random_nll, VOCABULARY, 50)}
    assert scores["copy"].segments == scores["i0"].segments


def test_a_likelihood_that_is_no_number_names_the_item() -> None:
    def broken(batch: Batch) -> np.ndarray:
        return np.where([[name == "i7"] for name in batch.record_ids], np.nan, _by_token(batch))

    with pytest.raises(UserError, match="^i7: .*not a finite number"):
        score_items(_items(), "eos", broken, VOCABULARY, 200)


# Score files.


def _item(name: str, total: float = -2.0) -> ItemScore:
    return ItemScore(name, "eos", (SegmentScore("whole", "speech", total, 3),), -1.0)


def test_scores_are_read_as_written_and_say_what_is_wrong(tmp_path: Path) -> None:
    path, pairs = tmp_path / "scores" / "x.jsonl", [Pair("1", "a", "b", "anna", {"type": "npi"})]
    measures = [Measure("all"), Measure("npi", where=("type", frozenset({"npi"}))), Measure("types", by="type")]
    written = collect(pairs, [_item("a"), _item("b", -0.1 - 0.2)], measures, ["whole_mean", "whole_sum"])
    write_scores(path, {"benchmark": "x"}, {"dev": written})
    assert read_scores(path) == {"dev": written}
    lines = path.read_text().splitlines()
    broken = {
        "b has no score": lines[:-1],
        "b is scored twice": [*lines, lines[-1]],
        "c has a score but is in no pair": [*lines, lines[-1].replace('"b"', '"c"')],
        "the score of b is not a finite": [*lines[:-1], lines[-1].replace("-0.30000000000000004", "NaN")],
        "has the format 1, and this version of tolktrain reads": [lines[0].replace('"format": 2', '"format": 1')],
        "line 5 is no line of a score file": [*lines[:-1], json.dumps({"kind": "item", "set": "dev"})],
    }
    for message, content in broken.items():
        path.write_text("\n".join(content) + "\n")
        with pytest.raises(UserError, match=message):
            read_scores(path)["dev"].by_rule(Rule.parse("whole_mean"))
    with pytest.raises(UserError, match="no scores for the rule whole_mean_no_context"):
        written.by_rule(Rule.parse("whole_mean_no_context"))


# Measures. The expected numbers are computed from the definitions of ZeroSpeech's sLM21, row by row.


def _lexical(seed: int) -> tuple[list[dict], dict[str, float]]:
    """Rows of a gold file in random order, and scores with ties."""
    rng = np.random.default_rng(seed)
    rows = [
        {"filename": f"{n}{voice}{correct}", "id": str(n), "voice": voice, "frequency": frequency, "correct": correct}
        for n, frequency in enumerate(["", "0", "0", "1", "4", "5", "19", "20", "99", "100", "101"])
        for voice in "ABCD"[: 1 + n % 4]
        for correct in (1, 0)
    ]
    scores = {row["filename"]: float(rng.integers(0, 3)) for row in rows}
    return [rows[place] for place in rng.permutation(len(rows))], scores


def _expected_by_pair(rows: list[dict], scores: dict[str, float], key: tuple[str, ...]) -> dict[tuple, float]:
    by_pair: dict[tuple, list[float]] = {}
    for right in rows:
        for wrong in rows:
            same = all(right[name] == wrong[name] for name in (*key, "voice"))
            if same and right["correct"] == 1 and wrong["correct"] == 0:
                difference = scores[right["filename"]] - scores[wrong["filename"]]
                value = 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
                by_pair.setdefault(tuple(right[name] for name in key), []).append(value)
    return {pair: sum(values) / len(values) for pair, values in by_pair.items()}


def _pairs_of(rows: list[dict], key: tuple[str, ...], label: str) -> list[Pair]:
    sides = {(*(row[name] for name in key), row["voice"], row["correct"]): row for row in rows}
    found = []
    for place, row in sides.items():
        if place[-1] == 1:
            value = frequency_band(row[label]) if label == "frequency" else row[label]
            other = sides[(*place[:-1], 0)]["filename"]
            found.append(Pair("/".join(place[:-2]), row["filename"], other, row["voice"], {label: value}))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_words_give_the_numbers_of_the_zerospeech_scoring(seed: int) -> None:
    rows, scores = _lexical(seed)
    by_pair = _expected_by_pair(rows, scores, ("id",))
    frequency = {row["id"]: row["frequency"] for row in rows}
    # The mean over bands, weighted by their pairs, without 'oov' and pairs that are in no band.
    known = [value for (name,), value in by_pair.items() if frequency[name] and float(frequency[name]) >= 1]
    pairs = _pairs_of(rows, ("id",), "frequency")
    won = pair_points(pairs, scores)
    everything, in_vocabulary = (measured(measure, pairs, won) for measure in WORDS.measures)
    assert everything is not None and in_vocabulary is not None
    assert everything["accuracy"] == pytest.approx(sum(by_pair.values()) / len(by_pair), rel=1e-12)
    assert in_vocabulary["accuracy"] == pytest.approx(sum(known) / len(known), rel=1e-12)
    assert (everything["ids"], in_vocabulary["ids"]) == (11, 8)
    assert everything["low"] <= everything["accuracy"] <= everything["high"]


@pytest.mark.parametrize("seed", range(4))
def test_sentences_by_pairs_and_by_types(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {"filename": f"{kind}{n}{v}{c}", "id": str(n), "type": kind, "voice": v, "correct": c}
        for kind, count in (("agreement", 7), ("npi", 2), ("reflexive", 1))
        for n in range(count)
        for v in "AB"
        for c in (0, 1)
    ]
    scores = {row["filename"]: float(rng.integers(0, 3)) for row in rows}
    rows = [rows[place] for place in rng.permutation(len(rows))]
    by_pair = _expected_by_pair(rows, scores, ("type", "id"))
    by_type: dict[str, list[float]] = {}
    for (kind, _), value in by_pair.items():
        by_type.setdefault(kind, []).append(value)
    pairs = _pairs_of(rows, ("type", "id"), "type")
    won = pair_points(pairs, scores)
    over_pairs, over_types = (measured(measure, pairs, won) for measure in SENTENCES.measures)
    assert over_pairs is not None and over_types is not None
    assert over_pairs["accuracy"] == pytest.approx(np.mean(list(by_pair.values())), rel=1e-12)
    assert over_types["accuracy"] == pytest.approx(np.mean([np.mean(v) for v in by_type.values()]), rel=1e-12)
    for row in (over_pairs, over_types):
        assert row["low"] <= row["accuracy"] <= row["high"]


def test_order_of_the_rows_changes_neither_numbers_nor_intervals() -> None:
    rows, scores = _lexical(7)
    pairs = _pairs_of(rows, ("id",), "frequency")
    again = [pairs[place] for place in np.random.default_rng(1).permutation(len(pairs))]
    for measure in (*WORDS.measures, Measure("by", by="frequency")):
        one, other = (measured(measure, list(order), pair_points(order, scores)) for order in (pairs, again))
        assert one == pytest.approx(other, rel=1e-12)


def test_a_constant_score_gives_exactly_half() -> None:
    rows, scores = _lexical(0)
    pairs = _pairs_of(rows, ("id",), "frequency")
    for measure in WORDS.measures:
        row = measured(measure, pairs, pair_points(pairs, dict.fromkeys(scores, -3.3)))
        assert row is not None and (row["accuracy"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
