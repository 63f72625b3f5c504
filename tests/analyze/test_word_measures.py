"""Retrieval, logit lens, probes, additive compositionality and pooling weights, against references and oracles."""

import numpy as np
import pytest
import torch
from small_task import LAYER, normal, small_sample, small_task
from torch import Tensor

from tolktrain.analyze.kinds import KINDS, token_kinds
from tolktrain.analyze.measures.additive import AdditiveSums
from tolktrain.analyze.measures.base import Measure, ranks, top_share
from tolktrain.analyze.measures.lens import Lens
from tolktrain.analyze.measures.pooling import Pooling
from tolktrain.analyze.measures.probes import RIDGE, Probes, RidgeSums, split_by_text
from tolktrain.analyze.measures.retrieval import Retrieval, candidates
from tolktrain.analyze.moments import PairMoments
from tolktrain.analyze.sample import NONE
from tolktrain.vocabulary import Vocabulary


def feed(measure: Measure, text: Tensor, speech: Tensor, rows: int = 50, order: np.ndarray | None = None) -> dict:
    """The numbers of the layer, with words in batches."""
    numbers = np.arange(len(text)) if order is None else order
    for begin in range(0, len(numbers), rows):
        words = numbers[begin : begin + rows]
        measure.add_words(LAYER, text[words], speech[words], words)
    return measure.result()["layers"][LAYER]


def test_ranks_share_ties() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
    assert ranks(scores, torch.tensor([2, 0, 1])).tolist() == [2.0, 2.0, 1.5]
    assert top_share(scores, torch.tensor([2, 0, 1]), 1).tolist() == pytest.approx([0.0, 1 / 3, 0.5])
    assert top_share(scores, torch.tensor([2, 0, 2]), 2).tolist() == pytest.approx([1.0, 2 / 3, 0.0])


def test_candidates_of_retrieval_are_of_different_types_and_texts() -> None:
    rng = np.random.default_rng(0)
    sample = small_sample(400, types=rng.integers(0, 30, 400), texts=rng.integers(0, 4, 400))
    pairs = candidates(sample, 20, seed=3)
    assert len(set(sample.types[pairs[:, 0]].tolist())) == len(pairs) == 20
    found = pairs[pairs[:, 1] != NONE]
    assert len(found) > 15
    assert (sample.types[found[:, 0]] == sample.types[found[:, 1]]).all()
    assert (sample.texts[found[:, 0]] != sample.texts[found[:, 1]]).all()


def test_retrieval_of_equal_and_unrelated_vectors() -> None:
    text = normal(200, 16, 0).float()
    task = small_task(small_sample(200), 16)
    equal = feed(Retrieval(task), text, 2 * text + 5)  # another mean and scale per modality
    assert equal["text_to_speech"] == equal["speech_to_text"] == 1.0
    assert equal["chance"] == 1 / 200 and equal["other_text"] is None
    drawn = [feed(Retrieval(task), text, normal(200, 16, seed).float()) for seed in range(1, 11)]
    assert np.mean([one["text_to_speech"] for one in drawn]) == pytest.approx(1 / 200, abs=0.006)
    constant = feed(Retrieval(task), torch.ones(200, 16), text)
    assert constant["text_to_speech"] == pytest.approx(1 / 200)


def test_retrieval_equals_a_plain_search_in_any_order() -> None:
    rng = np.random.default_rng(1)
    sample = small_sample(300, types=rng.integers(0, 40, 300), texts=rng.integers(0, 5, 300))
    text = normal(300, 8, 2)
    speech = text + 0.7 * normal(300, 8, 3)
    task = small_task(sample, 8)
    found = feed(Retrieval(task), text, speech, rows=7, order=rng.permutation(300))
    pairs = candidates(sample, 500, task.seed)

    def hits(queries: Tensor, targets: Tensor) -> float:
        a, b = queries.float() - queries.float().mean(0), targets.float() - targets.float().mean(0)
        best = [
            max(range(len(b)), key=lambda j, i=i: float(torch.cosine_similarity(a[i], b[j], dim=0)))
            for i in range(len(a))
        ]
        return float(np.mean([best[i] == i for i in range(len(a))]))

    others = pairs[pairs[:, 1] != NONE]
    assert found["text_to_speech"] == pytest.approx(hits(text[pairs[:, 0]], speech[pairs[:, 0]]))
    assert found["speech_to_text"] == pytest.approx(hits(speech[pairs[:, 0]], text[pairs[:, 0]]))
    assert found["other_text"] == pytest.approx(hits(text[others[:, 0]], speech[others[:, 1]]))
    assert 0.1 < found["text_to_speech"] < 1


def test_lens_reads_this_word_and_the_next_one() -> None:
    rng = np.random.default_rng(0)
    ids, following = rng.integers(0, 40, 300), rng.integers(0, 40, 300)
    following[::10] = NONE
    speech = torch.nn.functional.one_hot(torch.from_numpy(ids), 40).double() + 0.1 * normal(300, 40, 1)
    text = normal(300, 40, 2)
    task = small_task(small_sample(300, text_ids=ids, next_text_ids=following), 40)
    found = feed(Lens(task), text, speech, rows=41)
    assert found["word_top"] == 1.0 and found["word_rank"] == pytest.approx(1.0, abs=0.1)
    # What the states know nothing about is at its chance.
    assert found["next_top"] == pytest.approx(0.25, abs=0.08) and found["control_top"] == pytest.approx(0.25, abs=0.08)
    known = following != NONE
    places = [int((row > row[target]).sum()) + 1 for row, target in zip(text[known], following[known], strict=True)]
    assert found["text_next_top"] == pytest.approx(np.mean(np.array(places) <= 10))
    assert found["text_next_rank"] == pytest.approx(np.exp(np.mean(np.log(places))))
    shuffled = feed(Lens(task), text, speech, rows=300, order=rng.permutation(300))
    assert shuffled == pytest.approx(found)


def test_probe_is_ridge_regression_of_indicators() -> None:
    x = normal(200, 6, 0) * torch.tensor([1.0, 5, 0.1, 1, 1, 0]) + 3  # the last coordinate does not vary
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 4, 200))
    sums = RidgeSums(6, 4, torch.device("cpu"))
    for rows in torch.arange(200).split(13):
        sums.add(x[rows], labels[rows, None])
    asked = normal(20, 6, 1) + 3
    indicators = np.eye(5)[labels.numpy()][:, :4]
    mean, scale = x.numpy().mean(axis=0)[:5], x.numpy().std(axis=0)[:5]
    z, bias = (x.numpy()[:, :5] - mean) / scale, indicators.mean(axis=0)
    # Ridge regression as ordinary least squares with a further row for each coordinate.
    rows = np.concatenate([z, np.sqrt(RIDGE * 200) * np.eye(5)])
    weights = np.linalg.lstsq(rows, np.concatenate([indicators - bias, np.zeros((5, 4))]), rcond=None)[0]
    expected = (asked.numpy()[:, :5] - mean) / scale @ weights + bias
    np.testing.assert_allclose(sums.predict(asked).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_probes_find_what_is_there_and_the_control_does_not() -> None:
    rng = np.random.default_rng(0)
    types, units = rng.integers(0, 8, 1200), rng.integers(0, 5, 1200)
    sample = small_sample(
        1200, types=types, next_types=rng.integers(0, 8, 1200), units=units, texts=rng.integers(0, 12, 1200)
    )
    code = torch.nn.functional.one_hot(torch.from_numpy(types), 8).double()
    sound = torch.nn.functional.one_hot(torch.from_numpy(units), 5).double()
    text = torch.cat([code, torch.zeros(1200, 5)], dim=1) + 0.2 * normal(1200, 13, 1)
    speech = torch.cat([0.0 * code, sound], dim=1) + 0.2 * normal(1200, 13, 2)
    measure = Probes(small_task(sample, 13))
    found = feed(measure, text, speech, rows=97)
    chance = measure.result()["chance"]
    assert found["text_word"] > 0.95 and found["speech_unit"] > 0.95
    for key in ("text_word_shuffled", "speech_word", "speech_next", "text_next", "speech_unit_shuffled"):
        assert found[key] == pytest.approx(0.16, abs=0.1), key
    assert 0.05 < chance["word"] < 0.25
    again = feed(Probes(small_task(sample, 13)), text, speech, rows=400, order=rng.permutation(1200))
    assert again == pytest.approx(found)


def test_no_text_is_fitted_and_tested() -> None:
    texts = np.random.default_rng(0).integers(0, 9, 500)
    fitted, tested = split_by_text(texts, seed=1)
    assert not set(texts[fitted]) & set(texts[tested])
    assert sorted([*fitted, *tested]) == list(range(500)) and 0.2 < len(tested) / 500 < 0.5
    fitted, tested = split_by_text(np.zeros(50, np.int64), seed=1)
    assert len(fitted) == 50 and len(tested) == 0


def test_words_of_a_single_text_cannot_be_tested() -> None:
    sample = small_sample(100, types=np.arange(100) % 3, texts=np.zeros(100, np.int64))
    found = feed(Probes(small_task(sample, 4)), normal(100, 4, 0), normal(100, 4, 1))
    assert found["text_word"] is None and found["speech_unit_shuffled"] is None


def test_additive_fit_equals_least_squares_on_everything() -> None:
    words = normal(120, 3 * 7, 0).view(120, 3, 7) + 4
    whole = 0.2 * words[:, 0] - 0.5 * words[:, 1] + words[:, 2] + 0.4 * normal(120, 7, 1) - 9
    states = torch.cat([words, whole[:, None]], dim=1)
    sums = AdditiveSums()
    for part in states.split(11):
        sums.add(part)
    found = sums.fit()
    # A column per place, and one per coordinate for the vector b.
    design = np.concatenate([words.numpy().transpose(0, 2, 1).reshape(-1, 3), np.tile(np.eye(7), (120, 1))], axis=1)
    target = whole.numpy().reshape(-1)
    solution, residual, *_ = np.linalg.lstsq(design, target, rcond=None)
    variance = ((whole.numpy() - whole.numpy().mean(axis=0)) ** 2).sum()
    assert found["explained"] == pytest.approx(1 - float(residual[0]) / variance)
    np.testing.assert_allclose(found["weights"], solution[:3])
    last = np.concatenate([design[:, 2:3], design[:, 3:]], axis=1)
    assert found["explained_by_last"] == pytest.approx(1 - np.linalg.lstsq(last, target, rcond=None)[1][0] / variance)


def test_oracles_of_additive_compositionality() -> None:
    words = normal(200, 3 * 20, 0).view(200, 3, 20)

    def explained(whole: Tensor) -> float:
        sums = AdditiveSums()
        sums.add(torch.cat([words, whole[:, None]], dim=1))
        return float(sums.fit()["explained"])

    assert explained(words.sum(dim=1)) == pytest.approx(1.0)
    assert explained(normal(200, 20, 9)) < 0.01
    sums = AdditiveSums()
    sums.add(torch.ones(50, 4, 20))
    assert sums.fit()["explained"] is None


def test_kinds_of_tokens() -> None:
    vocabulary = Vocabulary(10, 0, 6)
    tokens = torch.tensor([[5, 0, vocabulary.switch, 3, vocabulary.speech_eos, 0]])
    speech = torch.tensor([[False, False, False, True, True, False]])
    kinds = token_kinds(tokens, speech, torch.tensor([5]), vocabulary, text_eos=0)
    assert [KINDS[kind] for kind in kinds[0, :5]] == ["text", "text EOS", "switch", "speech", "speech EOS"]
    assert kinds[0, 5] == -1


def test_pooling_weights_are_means_by_kind() -> None:
    rng = np.random.default_rng(0)
    kinds = torch.from_numpy(rng.integers(-1, 4, (6, 40)))
    probs = torch.softmax(normal(40 * 6, 1, 0).view(40, 6, 1).repeat(1, 1, 1), dim=0)
    measure = Pooling(small_task(small_sample(4), 4))
    measure.add_selector(kinds[:2], probs[:, :2])
    measure.add_selector(kinds[2:], probs[:, 2:])
    found = measure.result()
    for number, kind in enumerate(KINDS):
        chosen = probs.transpose(0, 1)[kinds == number]
        assert found["counts"][kind] == len(chosen)
        if len(chosen):
            assert found["kinds"][kind] == pytest.approx(chosen.mean(dim=0).tolist())
    assert found["kinds"]["speech EOS"] is None
    first = probs.transpose(0, 1)[:, :5][kinds[:, :5] == 0]
    assert found["parts"]["text"][0] == pytest.approx(first.mean(dim=0).tolist())


def _kept(value: object, seen: set[int]) -> int:
    """Numbers in the tensors and arrays that an object holds."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    parts: list[object] = list(getattr(value, "__dict__", {}).values())
    parts += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_kept(part, seen) for part in parts)


@pytest.mark.parametrize("kind", [Retrieval, Lens, Probes])
def test_what_is_kept_does_not_grow_with_the_words(kind: type[Measure]) -> None:
    rng = np.random.default_rng(0)
    sample = small_sample(
        600,
        types=rng.integers(0, 9, 600),
        texts=rng.integers(0, 6, 600),
        units=rng.integers(0, 9, 600),
        text_ids=rng.integers(0, 12, 600),
        next_text_ids=rng.integers(0, 12, 600),
    )
    measure = kind(small_task(sample, 12))
    sizes = []
    for words in np.arange(600).reshape(6, 100):
        measure.add_words(LAYER, normal(100, 12, 1), normal(100, 12, 2), words)
        sizes.append(_kept(measure, set()))
    assert len(set(sizes)) == 1


def test_sums_over_pairs_and_spans_do_not_grow() -> None:
    pairs, spans, sizes = PairMoments(), AdditiveSums(), []
    for _ in range(4):
        pairs.add(normal(50, 12, 1), normal(50, 12, 2))
        spans.add(normal(50, 4 * 12, 3).view(50, 4, 12))
        sizes.append((_kept(pairs, set()), _kept(spans, set())))
    assert set(sizes) == {(3 * 12**2 + 8 * 12 + 5, 2 * 4 * 12 + 16)}
