"""True against random continuation: what is asked, what is scored, and what known models answer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stub_model import VOCABULARY, random_nll, regular_record

from tolktrain.data.batch import Batch
from tolktrain.data.records import Record
from tolktrain.errors import UserError
from tolktrain.evaluate.baselines import fit_baselines
from tolktrain.evaluate.choices import (
    DIRECTIONS,
    Trial,
    build_pair,
    draw_trials,
    score_trials,
)
from tolktrain.evaluate.scoring import TokenNll, mean_log_likelihoods
from tolktrain.vocabulary import Vocabulary

VOICES = ("anna", "ben")


def choose(*arguments: Any) -> dict[str, Any] | None:
    """How often the true continuation is likelier."""
    found = score_trials(*arguments)
    return None if found is None else found.summary()


def _records(count: int = 12, num_codebooks: int = 1) -> list[Record]:
    return [regular_record(f"r{i}", 8 * i, source=VOICES[i % 2], num_codebooks=num_codebooks) for i in range(count)]


def _trials(count: int = 30, prompt_words: int = 6, continuation_words: int = 5) -> list[Trial]:
    return draw_trials(_records(), count, VOCABULARY, prompt_words, continuation_words)


def test_trials_are_deterministic_and_in_one_voice() -> None:
    trials, again = _trials(), _trials()
    assert len(trials) == 30
    for trial, same in zip(trials, again, strict=True):
        assert (trial.true.words.record.id, trial.true.begin) == (same.true.words.record.id, same.true.begin)
        assert (trial.other.words.record.id, trial.other.begin) == (same.other.words.record.id, same.other.begin)
        assert trial.true.words.record.source == trial.other.words.record.source
        assert trial.true.words.record.id != trial.other.words.record.id


def test_prompts_are_whole_utterances_and_continuations_begin_one() -> None:
    for trial in _trials(count=200):
        for passage in (trial.true, trial.other):
            assert passage.begin % 4 == 0 and passage.middle % 4 == 0
            assert (passage.middle - passage.begin, passage.end - passage.middle) == (8, 5)  # 6 words need 2 utterances
            assert passage.end <= 40


def test_no_passage_is_asked_twice_and_all_are_asked_if_need_be() -> None:
    places = [(trial.true.words.record.id, trial.true.begin) for trial in _trials(count=10_000)]
    assert len(places) == len(set(places)) == 12 * 7  # continuations begin with the words 8 to 32


def test_same_text_in_another_record_is_no_random_continuation() -> None:
    record = regular_record("a", 0)
    copies = [record, replace(record, id="b"), regular_record("c", 30, source="other")]
    for trial in draw_trials(copies, 50, VOCABULARY, 6, 5):
        assert "c" in (trial.true.words.record.id, trial.other.words.record.id)


def test_too_few_words_or_records_give_no_trials() -> None:
    assert draw_trials(_records(), 5, VOCABULARY, 30, 30) == []
    assert draw_trials(_records(1), 5, VOCABULARY, 6, 5) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sequence_is_prompt_switch_continuation_and_only_that_is_scored(direction: str) -> None:
    for trial in _trials(count=10):
        pair = build_pair(trial, direction, VOCABULARY, sequence_length=200)
        assert pair is not None
        for sequence, passage in zip(pair, (trial.true, trial.other), strict=True):
            source, target = direction.split("_to_")
            prompt, words = trial.true.words, passage.words
            first = (trial.true.begin, trial.true.middle)
            last = (passage.middle, passage.end)
            head = prompt.text_of(*first) if source == "text" else prompt.units_of(*first)[:, 0]
            tail = words.text_of(*last) if target == "text" else words.units_of(*last)[:, 0]
            middle = [VOCABULARY.switch] if source != target else []
            assert sequence.tokens[0].tolist() == [*head, *middle, *tail]
            assert sequence.length == len(sequence.is_speech)
            assert sequence.scored.tolist() == [False] * (len(head) + len(middle)) + [True] * len(tail)
            kinds = [source == "speech"] * len(head) + [False] * len(middle) + [target == "speech"] * len(tail)
            assert sequence.is_speech.tolist() == kinds


def test_words_carry_the_end_of_their_utterance() -> None:
    trial = _trials()[0]
    text = trial.true.words.text_of(trial.true.begin, trial.true.middle)
    assert len(text) == 10 and text[4] == text[9] == VOCABULARY.text_eos


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_long_prompts_lose_their_first_words(direction: str) -> None:
    trial = _trials()[0]
    whole = build_pair(trial, direction, VOCABULARY, 200)
    assert whole is not None
    limit = max(sequence.length for sequence in whole) - 4
    pair = build_pair(trial, direction, VOCABULARY, limit)
    assert pair is not None
    for cut, full in zip(pair, whole, strict=True):
        assert limit - 3 <= cut.length <= limit + 1
        assert cut.tokens.tolist() == full.tokens[:, full.length - cut.length :].tolist()
        assert cut.scored.sum() == full.scored.sum()
    assert build_pair(trial, direction, VOCABULARY, 5) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_codebooks_keep_their_delay(direction: str) -> None:
    vocabulary = Vocabulary(100, 0, 50, num_codebooks=2)
    trial = draw_trials(_records(num_codebooks=2), 5, vocabulary, 6, 5)[0]
    pair = build_pair(trial, direction, vocabulary, 200)
    assert pair is not None
    tokens, is_speech = pair[0].tokens, pair[0].is_speech
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_speech.astype(int), [0]))))
    for begin, end in edges.reshape(-1, 2):
        assert tokens[1, begin] == tokens[0, end - 1] == vocabulary.speech_pad
        assert tokens[0, begin : end - 1].tolist() == tokens[1, begin + 1 : end].tolist()


def _knows_the_truth(sign: float) -> TokenNll:
    """A model to which the right continuation is likelier (or less likely): it counts on from the last word."""

    def token_nll(batch: Batch) -> np.ndarray:
        scored = (batch.text_pred | batch.speech_pred).numpy()
        tokens, targets = batch.tokens[:, 0].numpy(), batch.targets[:, 0].numpy()
        nll = np.zeros(scored.shape)
        for row in range(len(scored)):
            first = int(np.flatnonzero(scored[row])[0])
            heard = bool(batch.speech_in[row, 0])
            eos = VOCABULARY.speech_eos if heard else VOCABULARY.text_eos
            before = [int(x) for x in tokens[row, : first + 1] if x != eos and x != VOCABULARY.switch]
            last = before[-1] if heard else before[-1] - 1
            said = bool(batch.speech_pred[row, first])
            follows = targets[row, first] if said else targets[row, first] - 1
            expected = last + 1
            right = (follows - expected) % 50 == 0 if heard or said else follows == expected % 99
            nll[row, scored[row]] = 1.0 - sign * (0.5 if right else 0.0)
        return nll

    return token_nll


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_model_that_knows_is_always_right_and_its_opposite_never(direction: str) -> None:
    records = [regular_record(f"r{i}", 8 * i, words=16, source=VOICES[i % 2]) for i in range(4)]
    trials = draw_trials(records, 100, VOCABULARY, 6, 5)
    assert len(trials) >= 4
    for sign, accuracy in ((1.0, 1.0), (-1.0, 0.0)):
        row = choose(trials, direction, {"model": _knows_the_truth(sign)}, VOCABULARY, 60, 400)
        assert row is not None and row["accuracy"] == accuracy and row["trials"] == len(trials)


def test_guessing_is_right_half_of_the_time() -> None:
    trials = _trials(count=84)
    rows = [choose(trials, direction, {"model": random_nll}, VOCABULARY, 200, 2000) for direction in DIRECTIONS]
    right = sum(row["correct"] for row in rows if row)
    assert abs(right / (4 * len(trials)) - 0.5) < 3 * 0.5 / np.sqrt(4 * len(trials))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("constant", [1.0, 0.7, 1e-3])
def test_constant_model_is_right_exactly_half_of_the_time(direction: str, constant: float) -> None:
    def constant_nll(batch: Batch) -> np.ndarray:
        return constant * (batch.text_pred | batch.speech_pred).numpy()

    row = choose(_trials(), direction, {"model": constant_nll}, VOCABULARY, 200, 2000)
    assert row is not None and (row["accuracy"], row["low"], row["high"], row["correct"]) == (0.5, 0.5, 0.5, 15)


def test_score_that_is_no_number_names_the_record() -> None:
    def broken(batch: Batch) -> np.ndarray:
        nll = random_nll(batch)
        nll[[record_id == "r3" for record_id in batch.record_ids]] = np.nan
        return nll

    with pytest.raises(UserError, match=r"^r3: .* not a finite number"):
        choose(_trials(), "text_to_text", {"model": broken}, VOCABULARY, 200, 2000)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_n_grams_do_not_see_the_prompt(direction: str) -> None:
    """Both continuations follow the same token, so an exchange of the prompts changes no n-gram's score."""
    records = _records()
    baselines = fit_baselines(records, VOCABULARY)
    trials = draw_trials(records, 84, VOCABULARY, 6, 5)
    swapped = [Trial(trial.other, trial.other) for trial in trials]
    for token_nll in (baselines.token_nll, baselines.unigrams.token_nll):
        scores = []
        for own, other in zip(trials, swapped, strict=True):
            prompts = [build_pair(trial, direction, VOCABULARY, 200) for trial in (own, other)]
            assert prompts[0] is not None and prompts[1] is not None
            scores.append([prompts[0][1], prompts[1][1]])
        for pair in scores:  # the same continuation after two prompts
            found = mean_log_likelihoods(pair, token_nll, VOCABULARY.text_eos, 2000)
            assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_others_are_scored_on_the_same_trials() -> None:
    trials = _trials()
    scorers = {"model": _knows_the_truth(1.0), "unigram": _knows_the_truth(-1.0), "bigram": random_nll}
    both = choose(trials, "text_to_text", scorers, VOCABULARY, 200, 2000)
    alone = choose(trials, "text_to_text", {"model": random_nll}, VOCABULARY, 200, 2000)
    assert both is not None and alone is not None
    assert both["bigram"] == alone["accuracy"] and both["unigram"] < both["accuracy"]


def test_prompt_blind_model_is_at_chance() -> None:
    """Scores of a continuation that do not depend on the prompt cancel: each is true once and random about once."""

    def by_content(batch: Batch) -> np.ndarray:
        scored = (batch.text_pred | batch.speech_pred).numpy()
        weights = np.random.default_rng(3).normal(size=200)
        return (weights[batch.targets[:, 0].numpy()] + 5) * scored

    row = choose(_trials(count=84), "text_to_text", {"model": by_content}, VOCABULARY, 200, 2000)
    assert row is not None and row["low"] < 0.5 < row["high"]


def test_mean_per_token_and_batching_do_not_change_scores() -> None:
    pairs = [build_pair(trial, "text_to_speech", VOCABULARY, 200) for trial in _trials()]
    sequences = [pair[0] for pair in pairs if pair is not None]

    def by_target(batch: Batch) -> np.ndarray:
        return (batch.targets[:, 0] / 7.0).double().numpy() * (batch.text_pred | batch.speech_pred).numpy()

    expected = [-(s.tokens[0][s.scored] / 7.0).mean() for s in sequences]
    for batch_tokens in (1, 300, 100_000):
        found = mean_log_likelihoods(sequences, by_target, VOCABULARY.text_eos, batch_tokens)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nothing_fits() -> None:
    assert choose(_trials(), "speech_to_speech", {"model": random_nll}, VOCABULARY, 6, 100) is None
