"""A language of tones with exact word times, and a small Wav2Vec2-CTC model that learns it in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

RATE = 16_000
LETTERS = "abcdefghijkl"
VOCABULARY = {text: number for number, text in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "'", *LETTERS.upper()])}


def speak(words: list[str], rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Each letter a tone of 60 to 160 ms, each word followed by a pause, a little noise; and the ends of the words."""
    pieces = [np.zeros(int(rng.uniform(0.05, 0.2) * RATE))]
    ends = []
    for word in words:
        for letter in word:
            time = np.arange(int(rng.uniform(0.06, 0.16) * RATE))
            edges = np.minimum(1, np.minimum(time, len(time) - time) / 80)
            frequency = 250 * 1.25 ** LETTERS.index(letter)
            pieces.append(0.3 * edges * np.sin(2 * np.pi * frequency * time / RATE + rng.uniform(0, 2 * np.pi)))
        ends.append(sum(map(len, pieces)) / RATE)
        pieces.append(np.zeros(int(rng.uniform(0.04, 0.25) * RATE)))
    waveform = np.concatenate(pieces)
    return (waveform + rng.normal(0, 0.003, len(waveform))).astype(np.float32), np.array(ends)


def sentence(rng: np.random.Generator, num_words: int) -> list[str]:
    """Random words of two to five letters, among them doubled ones."""
    return ["".join(rng.choice(list(LETTERS), rng.integers(2, 6))) for _ in range(num_words)]


def small_model(norm: str, kernels: tuple[int, ...] = (400, 1), strides: tuple[int, ...] = (320, 1)) -> Any:
    """Wav2Vec2ForCTC with random weights; `norm` is that of its convolutions, layer or group."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    no_dropout = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0
    )
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(64,) * len(kernels), conv_kernel=kernels, conv_stride=strides, num_feat_extract_layers=len(kernels),
        feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, pad_token_id=0, ctc_loss_reduction="mean", ctc_zero_infinity=True,
        layerdrop=0.0, mask_time_prob=0.0, apply_spec_augment=False, **no_dropout,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config).eval()


def save(model: Any, folder: Path, vocabulary: dict[str, Any] | None = None) -> str:
    """A folder as transformers has it: weights, configuration, feature extractor, vocabulary."""
    from transformers import Wav2Vec2FeatureExtractor

    model.save_pretrained(folder)
    masked = model.config.feat_extract_norm == "layer"
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=masked).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY if vocabulary is None else vocabulary))
    return str(folder)


def train(model: Any, steps: int, batch: int = 12, learning_rate: float = 4e-3) -> None:
    """Train with the CTC loss on fresh sentences of three words."""
    # Of a convolution as wide as this one, oneDNN takes ten times as long for the gradients.
    usual = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        _train(model, steps, batch, learning_rate)
    finally:
        torch.backends.mkldnn.enabled = usual


def _train(model: Any, steps: int, batch: int, learning_rate: float) -> None:
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        sentences = [sentence(rng, 3) for _ in range(batch)]
        waveforms = [torch.from_numpy(speak(words, rng)[0]) for words in sentences]
        waveforms = [(waveform - waveform.mean()) / waveform.std() for waveform in waveforms]
        labels = [torch.tensor([VOCABULARY[letter] for letter in "|".join(words).upper()]) for words in sentences]
        loss = model(
            torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            torch.nn.utils.rnn.pad_sequence(
                [torch.ones(len(s), dtype=torch.long) for s in waveforms], batch_first=True
            ),
            labels=torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
