"""The bigram baseline against hand-computed numbers and a brute-force twin."""

import math
from collections import Counter

import numpy as np
import pytest

from tolktrain.evaluate.ngram import UNKNOWN, Bigram, count, fit, fit_weights, in_held_out_tenth


def _streams(seed: int, number: int = 20, vocab_size: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(vocab_size, 0.3), size=vocab_size)
    streams = []
    for _ in range(number):
        stream = [int(rng.integers(vocab_size))]
        for _ in range(int(rng.integers(5, 40))):
            stream.append(int(rng.choice(vocab_size, p=transition[stream[-1]])))
        streams.append(np.array(stream))
    return streams


def test_hand_computed() -> None:
    bigram = count([np.array([0, 1, 0, 1]), np.array([0, 0])], vocab_size=3)
    # Pairs 01 10 01 | 00, so c(0) = 3, c(1) = 1; unigrams 0: 4, 1: 2 of 6.
    probabilities = np.exp(bigram.log_probs(np.array([0, 0, 1, 2, UNKNOWN]), np.array([1, 0, 0, 1, 0])))
    third = 1 / 3
    expected = [
        third * (2 / 3 + 2 / 6 + 1 / 3),
        third * (1 / 3 + 4 / 6 + 1 / 3),
        third * (1 + 4 / 6 + 1 / 3),
        third * (2 / 6 + 2 / 6 + 1 / 3),
        third * (4 / 6 + 4 / 6 + 1 / 3),
    ]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


def test_probabilities_sum_to_one_for_every_history() -> None:
    streams = [s[s != 3] for s in _streams(0)]
    bigram = fit(streams, [i % 10 == 0 for i in range(len(streams))], vocab_size=7)
    for history in [UNKNOWN, *range(7), 99]:
        total = np.exp(bigram.log_probs(np.full(7, history), np.arange(7))).sum()
        assert total == pytest.approx(1.0, abs=1e-12)


def _brute_log_prob(streams: list[np.ndarray], weights: tuple[float, ...], vocab_size: int, x: int, y: int) -> float:
    pairs = Counter((int(a), int(b)) for s in streams for a, b in zip(s[:-1], s[1:], strict=True))
    histories = Counter(int(a) for s in streams for a in s[:-1])
    tokens = Counter(int(a) for s in streams for a in s)
    unigram = tokens[y] / sum(tokens.values())
    conditional = pairs[x, y] / histories[x] if histories[x] else unigram
    return math.log(weights[0] * conditional + weights[1] * unigram + weights[2] / vocab_size)


def test_against_brute_force() -> None:
    streams = _streams(1)
    bigram = fit(streams, [i % 5 == 0 for i in range(len(streams))], vocab_size=9)
    histories, targets = (grid.ravel() for grid in np.meshgrid(np.arange(-1, 9), np.arange(9)))
    expected = [
        _brute_log_prob(streams, bigram.weights, 9, int(x), int(y)) for x, y in zip(histories, targets, strict=True)
    ]
    np.testing.assert_allclose(bigram.log_probs(histories, targets), expected, rtol=1e-10)


def _held_out_loss(bigram: Bigram, streams: list[np.ndarray]) -> float:
    return -float(np.concatenate([bigram.log_probs(s[:-1], s[1:]) for s in streams]).mean())


def test_expectation_maximization_finds_the_best_weights() -> None:
    streams = _streams(2)
    rest, tenth = streams[2:], streams[:2]
    best = fit_weights(count(rest, 7), tenth)
    reached = _held_out_loss(best, tenth)
    grid = np.linspace(0.001, 0.998, 40)
    for w2 in grid:
        for w1 in grid[grid < 0.999 - w2]:
            other = Bigram(
                7, best.pairs, best.pair_counts, best.history_counts, best.target_counts, (w2, w1, 1.0 - w2 - w1)
            )
            assert reached <= _held_out_loss(other, tenth) + 1e-6


def test_counts_come_from_all_streams_after_fitting() -> None:
    streams = _streams(3)
    fitted = fit(streams, [i == 0 for i in range(len(streams))], vocab_size=7)
    assert fitted.target_counts.sum() == sum(len(s) for s in streams)
    assert sum(fitted.weights) == pytest.approx(1.0)


def test_better_than_unigram_on_markov_streams_and_deterministic() -> None:
    streams = _streams(4, number=200)
    fitted = fit(streams[:150], [i % 10 == 0 for i in range(150)], vocab_size=7)
    again = fit(streams[:150], [i % 10 == 0 for i in range(150)], vocab_size=7)
    assert fitted.weights == again.weights
    unigram = Bigram(7, fitted.pairs, fitted.pair_counts, fitted.history_counts, fitted.target_counts, (0.0, 1.0, 0.0))
    assert _held_out_loss(fitted, streams[150:]) < _held_out_loss(unigram, streams[150:]) - 0.1


def test_large_vocabulary_needs_no_dense_table() -> None:
    vocab_size = 1_000_000
    fitted = fit([np.arange(1000), np.arange(1000)], [False, True], vocab_size)
    assert fitted.log_probs(np.array([5]), np.array([6]))[0] > math.log(0.5)


def test_tenth_is_about_a_tenth_and_depends_on_the_key_alone() -> None:
    chosen = [in_held_out_tenth(f"record-{i}".encode()) for i in range(5000)]
    assert 400 < sum(chosen) < 600
    assert chosen[17] == in_held_out_tenth(b"record-17")


def test_edge_cases() -> None:
    single = fit([np.array([0, 1, 0])], [True], vocab_size=2)
    assert np.isfinite(single.log_probs(np.array([0]), np.array([1]))).all()
    empty = fit([], [], vocab_size=4)
    assert np.exp(empty.log_probs(np.array([0]), np.array([3])))[0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.1"):
        single.log_probs(np.array([0]), np.array([2]))
