"""Sampling with models whose distributions are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tolktrain.data.sequences import IntArray
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import PlainDecoder
from tolktrain.generate.sampling import (
    Sampling,
    SpeechLimits,
    TextLimits,
    draw,
    sample_speech,
    sample_text,
)
from tolktrain.model.smoltolk import NextLogits
from tolktrain.vocabulary import Vocabulary

NUM_UNITS, EOS, PAD = 6, 6, 7
TEXT = 9


def _vocabulary(num_codebooks: int = 1) -> Vocabulary:
    return Vocabulary(text_vocab_size=TEXT, text_eos=0, num_units=NUM_UNITS, num_codebooks=num_codebooks)


def _settings(**changes: float) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_k": 50, "seed": 0} | changes)  # type: ignore[arg-type]


def _speech(model: "Recorder", window: int = 100) -> PlainDecoder:
    return PlainDecoder(model, "speech", window)


def _text(model: "Recorder") -> PlainDecoder:
    return PlainDecoder(model, "text", 100)


def _seconds(units: IntArray) -> float:
    return len(units) / 10


class Recorder:
    """A model with fixed logits that keeps what it was asked."""

    def __init__(
        self, num_codebooks: int = 1, speech: list[float] | None = None, text: list[float] | None = None
    ) -> None:
        self.speech = torch.tensor(speech or [0.0] * (NUM_UNITS + 2)).expand(num_codebooks, -1)
        self.text = torch.tensor(text or [0.0] * TEXT)
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, tokens: Tensor, speech_in: Tensor, lengths: Tensor) -> NextLogits:
        self.asked.append((tokens, speech_in, lengths))
        rows = len(tokens)
        return NextLogits(self.text.expand(rows, -1), self.speech.expand(rows, -1, -1))


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1]))
    generator, everything = torch.Generator().manual_seed(0), torch.ones(4, dtype=torch.bool)
    counts = np.bincount([draw(logits, everything, _settings(), generator) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.2, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-12])
def test_temperatures_too_small_to_divide_by(temperature: float) -> None:
    """Quotients would be infinite or not a number; the likeliest allowed id is drawn."""
    allowed = torch.tensor([True, True, False, True])
    logits = torch.tensor([-3.0, 2.5, 90.0, 2.0])
    assert draw(logits, allowed, _settings(temperature=temperature), torch.Generator()) == 1


def test_temperature_sharpens() -> None:
    logits = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1]))
    generator, everything = torch.Generator().manual_seed(0), torch.ones(4, dtype=torch.bool)
    drawn = [draw(logits, everything, _settings(temperature=0.5), generator) for _ in range(4000)]
    shares = np.array([0.25, 0.04, 0.04, 0.01]) / 0.34
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, shares, atol=0.03)


def test_top_k_and_allowed_ids() -> None:
    logits, generator = torch.tensor([3.0, 9.0, 2.0, 1.0]), torch.Generator().manual_seed(0)
    allowed = torch.tensor([True, False, True, True])
    assert {draw(logits, allowed, _settings(top_k=2), generator) for _ in range(200)} == {0, 2}
    assert {draw(logits, allowed, _settings(top_k=1), generator) for _ in range(20)} == {0}
    assert {draw(logits, allowed, _settings(top_k=99), generator) for _ in range(200)} == {0, 2, 3}


def test_speech_is_units_and_eos_only_and_lasts_as_asked() -> None:
    model = Recorder(speech=[0.0] * NUM_UNITS + [2.0, 99.0])
    prompts = [np.array([[1], [2], [EOS]]), np.array([[3]])]
    said = sample_speech(_speech(model), prompts, _vocabulary(), _settings(), SpeechLimits(_seconds, 5.0, 500))
    for units in said:
        assert units.max() <= EOS
        assert (units[:, 0] != EOS).sum() == 50
        ends = np.flatnonzero(units[:, 0] == EOS)
        assert len(ends) and (np.diff(ends) > 1).all()
    assert said[0][0, 0] != EOS, "the prompt ended with EOS already"


def test_number_of_units_is_limited() -> None:
    said = sample_speech(
        _speech(Recorder()), [np.array([[1]])], _vocabulary(), _settings(), SpeechLimits(lambda units: 0.0, 5.0, 7)
    )
    assert len(said[0]) == 7


def test_model_reads_prompt_and_what_it_said() -> None:
    model = Recorder(speech=[0.0] * NUM_UNITS + [-99.0, 0.0])
    prompts = [np.array([[1], [2], [3]]), np.array([[4]])]
    said = sample_speech(_speech(model, 8), prompts, _vocabulary(), _settings(), SpeechLimits(_seconds, 1.0, 100))
    for step, (tokens, speech_in, lengths) in enumerate(model.asked):
        for row, prompt in enumerate(prompts):
            known = np.concatenate([prompt, said[row]])[: len(prompt) + step, 0]
            if len(known) > 8:  # of a full window, the last half remains
                known = known[-(4 + (len(known) - 9) % 5) :]
            assert int(lengths[row]) == len(known)
            assert tokens[row, 0, : len(known)].tolist() == known.tolist()
            assert speech_in[row].tolist() == [True] * len(known) + [False] * (speech_in.shape[1] - len(known))


def test_same_seed_same_speech_whatever_the_batch() -> None:
    prompts = [np.array([[1], [2]]), np.array([[4]])]
    together = sample_speech(_speech(Recorder()), prompts, _vocabulary(), _settings(), SpeechLimits(_seconds, 2.0, 100))
    alone = sample_speech(
        _speech(Recorder()), prompts[:1], _vocabulary(), _settings(), SpeechLimits(_seconds, 2.0, 100)
    )
    other = sample_speech(
        _speech(Recorder()), prompts[:1], _vocabulary(), _settings(seed=1), SpeechLimits(_seconds, 2.0, 100)
    )
    assert together[0].tolist() == alone[0].tolist() != other[0].tolist()
    assert together[0].tolist() != together[1].tolist()


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_codebooks_are_delayed_and_end_together(num_codebooks: int) -> None:
    vocabulary = _vocabulary(num_codebooks)
    model = Recorder(num_codebooks, speech=[0.0] * NUM_UNITS + [1.0, 99.0])
    prompt = np.arange(4 * num_codebooks).reshape(4, num_codebooks) % NUM_UNITS
    said = sample_speech(_speech(model), [prompt], vocabulary, _settings(), SpeechLimits(_seconds, 3.0, 200))[0]
    assert (said[:, 0] != EOS).sum() == 30 and (said == EOS).any()
    assert ((said == EOS).all(axis=1) == (said == EOS).any(axis=1)).all()
    tokens = model.asked[-1][0][0].numpy()
    frames = np.concatenate([prompt, said])
    for codebook in range(num_codebooks):
        assert (tokens[codebook, :codebook] == PAD).all()
        # The latest frames still lack their last codebooks and are not among those returned.
        read = tokens[codebook, codebook:][: len(frames)]
        assert len(read) >= len(frames) - 1
        assert read.tolist() == frames[: len(read), codebook].tolist()


def test_text_ends_after_its_utterances_or_its_limit() -> None:
    vocabulary = _vocabulary()
    context = Context.of_speech(np.array([[1], [EOS]]), vocabulary, switch=True)
    assert context.tokens.tolist() == [[1, EOS, vocabulary.switch]]
    assert context.is_speech.tolist() == [True, True, False]
    ending = _text(Recorder(text=[1.0] + [0.0] * 8))
    for text in sample_text(ending, [context] * 3, vocabulary, _settings(), TextLimits(200, 2)):
        assert text.count(0) == 2 and text[-1] == 0
    never = Recorder(text=[-99.0] + [0.0] * 8)
    assert [len(text) for text in sample_text(_text(never), [context], vocabulary, _settings(), TextLimits(12, 2))] == [
        12
    ]
    tokens, speech_in, _ = never.asked[-1]
    assert speech_in[0].tolist() == [True, True] + [False] * 12
    assert tokens[0, 0, :3].tolist() == [1, EOS, vocabulary.switch]
