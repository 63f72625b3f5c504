"""The model and its training: framewise targets within known word spans, and a CTC loss with them."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speech import SAMPLE_RATE, Example, Sentence, disturb, join, standardize, stretch
from targets import BLANK, CHARACTERS, IDS, Spans, text_ids
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

BATCH_SECONDS = 30
LENGTHS = (3.0, 6.0, 6.0, 10.0, 10.0, 25.0)  # of a batch's examples, in seconds
PEAK_RATE = 2.5e-3
EVEN_STEPS = 250  # until then characters are spread evenly; then they go where the model hears them, within the word
CTC_WEIGHT = 0.1
BANDS = 32


def configuration() -> Wav2Vec2Config:
    """Frames of 25 ms every 20 ms, a short view around each, three transformer layers: 0.40M parameters."""
    return Wav2Vec2Config(
        vocab_size=len(CHARACTERS),
        pad_token_id=BLANK,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=224,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
        conv_dim=(4 * BANDS, 64, 96),
        conv_kernel=(240, 1, 2),
        conv_stride=(160, 1, 2),
        num_conv_pos_embeddings=19,
        num_conv_pos_embedding_groups=2,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )


def filter_bank() -> torch.Tensor:
    """[4 * BANDS, 1, 240]: tones under a bell, on the mel scale, in four phases (rectified, they give the loudness)."""
    width = 240
    mel = np.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7500 / 700), BANDS + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    time_axis = (np.arange(width) - (width - 1) / 2) / SAMPLE_RATE
    filters = []
    for low, centre, high in zip(hertz, hertz[1:], hertz[2:], strict=False):
        bell = np.exp(-0.5 * (time_axis * np.pi * max(high - low, 150.0) / 2) ** 2)
        for phase in range(4):
            tone = bell * np.cos(2 * np.pi * centre * time_axis + phase * np.pi / 2)
            filters.append(tone / np.linalg.norm(tone) * (centre / 500) ** 0.5)
    return torch.tensor(np.array(filters), dtype=torch.float32)[:, None]


def new_model(seed: int) -> Wav2Vec2ForCTC:
    """A fresh model whose first convolution is a filter bank."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Wav2Vec2ForCTC(configuration())
    first = model.wav2vec2.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(filter_bank())
        first.bias.normal_(std=0.05)
    return model


def batch(passages: Sequence[Sequence[Sentence]], rng: np.random.Generator) -> list[Example]:
    """Examples of one length, each by one voice, BATCH_SECONDS together."""
    seconds = LENGTHS[int(rng.integers(len(LENGTHS)))]
    examples = []
    for _ in range(round(BATCH_SECONDS / seconds)):
        passage = passages[int(rng.integers(len(passages)))]
        chosen, gaps, length = [], [], 0.0
        while not chosen or length < seconds - 2:
            chosen.append(passage[int(rng.integers(len(passage)))])
            gaps.append(rng.uniform(0.0, 0.5) if rng.random() < 0.8 else rng.uniform(0.5, 1.2))
            length += gaps[-1] + chosen[-1].speech_end / SAMPLE_RATE
        example = join(chosen, gaps)
        examples.append(stretch(example, rng.uniform(0.87, 1.18)) if rng.random() < 0.5 else example)
    longest = max(len(example.samples) for example in examples)
    return [_finish(example, longest, rng) for example in examples]


def _finish(example: Example, num_samples: int, rng: np.random.Generator) -> Example:
    samples = np.pad(example.samples, (0, num_samples - len(example.samples)))
    samples = standardize(disturb(samples, rng))
    return Example(samples, example.words, example.starts, example.ends, example.closed)


def losses(model: Wav2Vec2ForCTC, examples: Sequence[Example], even: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Cross-entropy of the frames, CTC loss per character, and the share of frames that are right."""
    samples = torch.from_numpy(np.stack([example.samples for example in examples]))
    log_probs = model(samples).logits.log_softmax(-1)  # [B, frames, ids]
    spans = Spans(examples, log_probs.shape[1])
    wanted = torch.from_numpy(spans.even() if even else spans.best(log_probs.detach().numpy()))
    framewise = functional.nll_loss(log_probs.flatten(0, 1), wanted.flatten())
    texts = [text_ids(example.words) for example in examples]
    lengths = torch.tensor([len(text) for text in texts])
    frames = torch.full((len(texts),), log_probs.shape[1])
    flat = torch.tensor([index for text in texts for index in text])
    ctc = functional.ctc_loss(log_probs.transpose(0, 1), flat, frames, lengths, BLANK, zero_infinity=True)
    return framewise, ctc, float((log_probs.argmax(-1) == wanted).float().mean())


def train(passages: Sequence[Sequence[Sentence]], seed: int, steps: int) -> Wav2Vec2ForCTC:
    """Train from scratch; the same seed gives the same model on the same machine."""
    model = new_model(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, steps, pct_start=0.1)
    rng = np.random.Generator(np.random.Philox(seed))
    begun, seen = time.monotonic(), np.zeros(3)
    for step in range(1, steps + 1):
        framewise, ctc, right = losses(model, batch(passages, rng), step <= EVEN_STEPS)
        (framewise + CTC_WEIGHT * ctc * (step > EVEN_STEPS)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += framewise.item(), ctc.item(), right
        if step % 50 == 0:
            figures = " ".join(f"{figure:.3f}" for figure in seen / 50)
            print(f"{step} {time.monotonic() - begun:.0f} s: framewise, CTC, right: {figures}", flush=True)
            seen[:] = 0
    return model.eval()


def save(model: Wav2Vec2ForCTC, folder: Path) -> None:
    """Write model, tokenizer and feature extractor; weights in half precision, read back as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps(IDS))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLE_RATE, padding_value=0.0, do_normalize=True, return_attention_mask=True
    ).save_pretrained(folder)
