"""Forced alignment: the search against all paths there are, and a model that was trained for it on tones."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tones
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.config.prepare import AlignmentConfig
from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align import ctc
from tolktrain.prepare.recordings.align.ctc import CtcAligner, best_paths, checked, frames_needed, last_frame
from tolktrain.prepare.recordings.align.ctc_model import CtcModel
from tolktrain.prepare.utterances import Aligned, EntryError, Reason

pytest.importorskip("transformers", reason="needs the package transformers")
pytestmark = pytest.mark.transformers


def aligner(path: str, **options: float) -> CtcAligner:
    return CtcAligner(AlignmentConfig(method="ctc", model=path), "cpu", **options)


# The search.


def collapsed(labels: list[int]) -> list[int]:
    return [label for label, _ in itertools.groupby(labels) if label]


def path_score(emissions: torch.Tensor, tokens: npt.NDArray[np.int64], path: npt.NDArray[np.int64]) -> float:
    labels = np.where(path >= 0, tokens[path], 0)
    assert collapsed(labels.tolist()) == tokens.tolist()
    # The places of tokens agree with the labels they are read from: none is passed over or taken twice.
    assert [place for place, _ in itertools.groupby(path[path >= 0].tolist())] == list(range(len(tokens)))
    return float(emissions.double()[torch.arange(len(labels)), torch.from_numpy(labels)].sum())


@st.composite
def utterances(draw: st.DrawFn) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    tokens = np.array(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), np.int64)
    frames = draw(st.integers(frames_needed(tokens), 6))
    seed = draw(st.integers(0, 2**32 - 1))
    sharpness = draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits = sharpness * np.random.default_rng(seed).normal(size=(frames, 4))
    return torch.from_numpy(logits).float().log_softmax(-1), tokens


@settings(max_examples=60)
@given(st.lists(utterances(), min_size=1, max_size=4))
def test_no_path_is_likelier(batch: list[tuple[torch.Tensor, npt.NDArray[np.int64]]]) -> None:
    paths = best_paths([rows for rows, _ in batch], [tokens for _, tokens in batch], blank=0)
    for (rows, tokens), path in zip(batch, paths, strict=True):
        table = rows.double().numpy()
        best = max(
            sum(table[frame, label] for frame, label in enumerate(labels))
            for labels in itertools.product(range(4), repeat=len(rows))
            if collapsed(list(labels)) == tokens.tolist()
        )
        assert path_score(rows, tokens, path) == pytest.approx(best, abs=1e-9)


def test_a_search_in_pieces_finds_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, tokens = [], []
    for frames, count in ((150, 40), (233, 100), (90, 1)):
        rows.append(torch.from_numpy(rng.normal(size=(frames, 6))).float().log_softmax(-1))
        tokens.append(rng.integers(1, 6, count))
    whole = best_paths(rows, tokens, 0)
    monkeypatch.setattr(ctc, "_SEARCH_BYTES", 1)
    for one, other, row, ids in zip(whole, best_paths(rows, tokens, 0), rows, tokens, strict=True):
        assert np.array_equal(one, other)
        path_score(row, ids, other)


def test_equal_neighbours_need_a_blank_between() -> None:
    assert frames_needed(np.array([1, 1, 2, 2, 2])) == 8
    rows = torch.tensor([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]]).log()
    assert best_paths([rows], [np.array([1, 1])], 0)[0].tolist() == [0, -1, 1]


def test_the_blanks_after_a_letter() -> None:
    path = np.array([-1, 0, 0, -1, -1, 1, 2, -1])
    assert [last_frame(path, token) for token in range(3)] == [(2, 2), (5, 0), (6, 1)]


# A model that was trained.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = tones.small_model("layer")
    tones.train(model, steps=250, batch=6, learning_rate=8e-3)
    return tones.save(model, tmp_path_factory.mktemp("trained"))


Spoken = list[tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.float64]]]


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    rng = np.random.default_rng(99)
    sentences = [tones.sentence(rng, int(rng.integers(3, 9))) for _ in range(40)]
    return [(words, *tones.speak(words, rng)) for words in sentences]


def good(results: list[Aligned | EntryError]) -> list[Aligned]:
    assert all(isinstance(result, Aligned) for result in results), results
    return [result for result in results if isinstance(result, Aligned)]


@pytest.mark.slow
def test_words_end_where_they_do(trained: str, spoken: Spoken) -> None:
    results = good(
        aligner(trained).align([waveform for _, waveform, _ in spoken], [" ".join(words) for words, *_ in spoken])
    )
    assert [list(result.words) for result in results] == [words for words, *_ in spoken]
    errors = np.concatenate([result.ends - ends for result, (_, _, ends) in zip(results, spoken, strict=True)])
    assert np.median(np.abs(errors)) <= 0.040
    assert np.quantile(np.abs(errors), 0.9) <= 0.080
    assert abs(np.median(errors)) <= 0.020  # neither early nor late
    assert all((np.diff(result.ends) >= 0).all() for result in results)


@pytest.mark.slow
def test_another_text_has_less_confidence(trained: str, spoken: Spoken) -> None:
    waveforms = [waveform for _, waveform, _ in spoken]
    rng = np.random.default_rng(5)
    right = good(aligner(trained).align(waveforms, [" ".join(words) for words, *_ in spoken]))
    wrong = aligner(trained).align(waveforms, [" ".join(tones.sentence(rng, len(words))) for words, *_ in spoken])
    lowest = min(float(result.confidence or 0) for result in right)
    highest = max(float(result.confidence or 0) for result in wrong if isinstance(result, Aligned))
    assert highest < 0.2 < 0.3 < lowest <= 1
    assert checked(right[0], 0.3) is right[0]
    with pytest.raises(EntryError, match="is below min_confidence 0.99") as error:
        checked(right[0], 0.99999)
    assert error.value.reason is Reason.CONFIDENCE
    with pytest.raises(EntryError):
        checked(Aligned(("a",), np.zeros(1), float("nan")), 0.0)


@pytest.mark.slow
def test_a_batch_gives_what_single_waveforms_do(trained: str, spoken: Spoken) -> None:
    waveforms, texts = [waveform for _, waveform, _ in spoken[:12]], [" ".join(words) for words, *_ in spoken[:12]]
    together = good(aligner(trained, batch_seconds=20).align(waveforms, texts))
    for waveform, text, result in zip(waveforms, texts, together, strict=True):
        (alone,) = good(aligner(trained).align([waveform], [text]))
        assert np.array_equal(alone.ends, result.ends) and alone.words == result.words
        assert alone.confidence == pytest.approx(result.confidence, rel=1e-4)


@pytest.mark.slow
def test_long_waveforms_go_through_windows(trained: str, spoken: Spoken) -> None:
    waveform = np.concatenate([waveform for _, waveform, _ in spoken[:20]])
    words = [word for words, *_ in spoken[:20] for word in words]
    starts = np.cumsum([0, *(len(waveform) for _, waveform, _ in spoken[:19])]) / tones.RATE
    ends = np.concatenate([start + ends for start, (_, _, ends) in zip(starts, spoken[:20], strict=True)])
    whole, cut = CtcModel(trained, "cpu", window_seconds=1e4), CtcModel(trained, "cpu", window_seconds=9.0)
    (one,), (many,) = whole.emissions([waveform]), cut.emissions([waveform])
    assert one.shape == many.shape == (whole.num_frames(len(waveform)), len(tones.VOCABULARY))
    # Attention sees less in a window; what is likeliest stays so in nearly every frame, at the seams too.
    assert (one.argmax(-1) == many.argmax(-1)).float().mean() > 0.97
    (aligned,) = good(aligner(trained).align([waveform], [" ".join(words)]))  # 60 s: more than one window
    assert len(waveform) / tones.RATE > 45
    assert np.median(np.abs(aligned.ends - ends)) <= 0.040 and np.abs(aligned.ends - ends).max() < 0.5


# Models with random weights.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kernels, strides = (10, 3, 2), (5, 4, 4)
    return {
        norm: tones.save(tones.small_model(norm, kernels, strides), tmp_path_factory.mktemp(norm))
        for norm in ("layer", "group")
    }


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_probabilities_are_those_of_transformers(folders: dict[str, str], norm: str) -> None:
    """Of waveforms in batches and of a length each, and of windows that hold the audio just so."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    rng = np.random.default_rng(3)
    lengths = (16_000, 9_000, 9_000, 8_999, 1_234, 100, 16_000)
    waveforms = [rng.normal(0.1, 0.2, length).astype(np.float32) for length in lengths]
    model = CtcModel(folders[norm], "cpu", window_seconds=1.0)
    reference = Wav2Vec2ForCTC.from_pretrained(folders[norm])
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[norm])
    for waveform, rows in zip(waveforms, model.emissions(waveforms), strict=True):
        inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            expected = reference(inputs).logits[0].log_softmax(-1)
        assert rows.shape == expected.shape
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_frames_and_seconds(folders: dict[str, str]) -> None:
    model = CtcModel(folders["layer"], "cpu")
    assert model.stride == 80 and model.receptive_field == 10 + 2 * 5 + 1 * 20
    for samples in range(0, 400):
        assert model.num_frames(samples) == max(0, (samples - model.receptive_field) // 80 + 1)
    # The first frame sees 40 samples; its 80 lie around the 20th.
    assert model.frame_end(0) == 60 / 16_000 and model.frame_end(10) == 860 / 16_000


def test_windows_of_a_long_waveform_are_joined_without_gap(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that carry their own number come out in order, whatever the length, and none from a window's edge."""
    model = CtcModel(folders["layer"], "cpu", window_seconds=6.0)
    calls: list[int] = []

    def numbered(inputs: list[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
        calls.append(len(inputs))
        places = [torch.arange(model.num_frames(len(x)), dtype=torch.float64) for x in inputs]
        edges = [torch.minimum(place, len(place) - 1 - place) for place in places]
        return [torch.stack((p + float(x[0]), e), 1) for p, e, x in zip(places, edges, inputs, strict=True)]

    monkeypatch.setattr(model, "_run", numbered)
    monkeypatch.setattr(model, "_normalize", lambda waveform: waveform)
    for seconds in (5.9, 6.01, 8.0, 13.37, 60.0):
        samples = np.arange(int(seconds * 16_000), dtype=np.float64) / 80
        (rows,) = model.emissions([samples.astype(np.float32)])
        assert rows[:, 0].tolist() == list(range(model.num_frames(len(samples))))
        distance = np.minimum(np.arange(len(rows)), len(rows) - 1 - np.arange(len(rows)))
        # Two seconds are 400 frames here.
        assert (rows[:, 1].numpy() >= np.minimum(distance, 399)).all()
    assert max(calls) > 5


def test_what_cannot_be_aligned_fails_in_its_place(folders: dict[str, str]) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    broken = waveform.copy()
    broken[100] = np.nan
    texts_and_waveforms = [
        ("abba cab", waveform),
        ("aaaa bbbb", waveform[:400]),  # 5 frames
        ("...", waveform),
        ("", waveform),
        ("abc 你好 abc", waveform),
        ("abc xyzxyzxyzabcd abc", waveform),
        ("abc", broken),
        ("abc", waveform[:0]),
        ("bad 😀 cafélike’d dab", waveform),
    ]
    results = aligner(folders["layer"]).align([s for _, s in texts_and_waveforms], [t for t, _ in texts_and_waveforms])
    errors = [(r.reason, r.detail) if isinstance(r, EntryError) else None for r in results]
    assert errors == [
        None,
        (Reason.ALIGNMENT, "the text needs 15 frames; the audio has 5, so it is cut off"),
        (Reason.TEXT, "nothing of the text '...' is spoken"),
        (Reason.TEXT, "nothing of the text '' is spoken"),
        (Reason.ALIGNMENT, "the model's vocabulary has no letter of '你'"),
        (Reason.ALIGNMENT, "the model's vocabulary lacks 9 of 19 letters"),
        (Reason.ALIGNMENT, "the model gives no finite probabilities for it"),
        (Reason.ALIGNMENT, "the text needs 3 frames; the audio has 0, so it is cut off"),
        None,
    ]
    first, last = results[0], results[-1]
    assert isinstance(first, Aligned) and isinstance(last, Aligned)
    # Neighbours that fail change nothing; an unspoken word shares the end of the word before it.
    (alone,) = good(aligner(folders["layer"]).align([waveform], ["abba cab"]))
    assert np.array_equal(alone.ends, first.ends)
    assert last.words == ("bad", "😀", "cafélike’d", "dab") and last.ends[0] == last.ends[1]
    assert last.ends[-1] <= 1.0


def test_letters_in_the_form_of_the_vocabulary(folders: dict[str, str], tmp_path: Path) -> None:
    model = CtcModel(folders["layer"], "cpu")
    assert model.token_ids("a") == [tones.VOCABULARY["A"]] == model.token_ids("á")
    assert model.token_ids("'") == [tones.VOCABULARY["'"]]
    assert model.token_ids("|") == model.token_ids("z") == model.token_ids("你") == []
    folder = tmp_path / "lower"
    tones.save(tones.small_model("layer"), folder, {"<pad>": 0, "<unk>": 1, "s": 2, "é": 3, "e": 4})
    model = CtcModel(str(folder), "cpu")
    assert model.delimiter is None and model.token_ids("ß") == [2, 2] and model.token_ids("é") == [3]
    # Without a delimiter and an apostrophe in the vocabulary.
    (result,) = good(aligner(str(folder)).align([np.zeros(16_000, np.float32)], ["se's es"]))
    assert result.words == ("se's", "es")


def test_tokens_that_are_added_to_the_vocabulary(folders: dict[str, str], tmp_path: Path) -> None:
    """Those that the files name count if the model gives them; those that the library adds itself never do."""
    letters = {"<pad>": 0, "<unk>": 1, **{letter: 2 + number for number, letter in enumerate("abcdefghijklmno")}}
    folder = shutil.copytree(folders["layer"], tmp_path / "model")
    (folder / "vocab.json").write_text(json.dumps(letters))  # 17 of the 18 that the model gives; <s> and </s> follow
    assert CtcModel(str(folder), "cpu").delimiter is None
    (folder / "added_tokens.json").write_text(json.dumps({"|": 17}))
    assert CtcModel(str(folder), "cpu").delimiter == 17
    (folder / "vocab.json").write_text(json.dumps(letters | {"p": 17}))
    (folder / "added_tokens.json").write_text(json.dumps({"|": 18, "q": 19}))
    model = CtcModel(str(folder), "cpu")
    assert model.delimiter is None and model.token_ids("p") == [17] and model.token_ids("q") == []


def test_the_digest_follows_every_file_that_matters(folders: dict[str, str], tmp_path: Path) -> None:
    digest = aligner(folders["layer"]).digest
    assert len(digest) == 64 and digest != aligner(folders["group"]).digest
    copy = tmp_path / "copy"
    shutil.copytree(folders["layer"], copy)
    assert aligner(str(copy)).digest == digest
    (copy / "vocab.json").write_text(json.dumps(tones.VOCABULARY | {"z": 17}))
    changed = {digest, aligner(str(copy)).digest}
    description = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(description | {"do_normalize": False}))
    changed.add(aligner(str(copy)).digest)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    changed.add(aligner(str(copy)).digest)
    assert len(changed) == 4


def test_what_is_no_model_is_refused(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="alignment.model: .*nowhere is no folder"):
        aligner(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="alignment.model: some/model is no folder here and could not be fetched"):
        aligner("some/model")
    for name in ("vocab.json", "config.json", "preprocessor_config.json"):
        broken = tmp_path / name
        shutil.copytree(folders["layer"], broken)
        (broken / name).write_text("{")
        with pytest.raises(UserError, match="alignment.model: .* is no CTC model of the transformers library"):
            aligner(str(broken))
    headless = tones.save(tones.small_model("layer").wav2vec2, tmp_path / "headless")
    with pytest.raises(UserError, match="alignment.model: .*lacks weights .*lm_head"):
        aligner(headless)
    large = tones.save(tones.small_model("layer"), tmp_path / "large", tones.VOCABULARY | {"Z": 18})
    with pytest.raises(UserError, match="vocab.json of .* goes to 18, but the model has 18 tokens only"):
        aligner(large)
    with pytest.raises(UserError, match="alignment.language 'xx'"):
        CtcAligner(AlignmentConfig(method="ctc", model=folders["layer"], language="xx"), "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers library; install it with pip install 'tolktrain\[audio\]'"):
        aligner(folders["layer"])
