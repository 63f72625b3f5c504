"""How well the aligner places words, against espeak-ng's own word events, on sentences it never heard."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from speech import (
    HELDOUT_VOICES,
    SAMPLE_RATE,
    Example,
    Sentence,
    add_noise,
    hear,
    join,
    low_pass,
    speak,
    training_voices,
)
from targets import STRIDE
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from viterbi import Aligned, align

from sample_corpus.corpus import TRAIN_VOICES
from sample_corpus.espeak import speak_passages

SEED = 77  # of sentences; none of them is in the training corpus as a whole
FRAME_MS = STRIDE / SAMPLE_RATE * 1000
# Words that the training corpus does not have.
UNSEEN = tuple((Path(__file__).parent / "unseen_words.txt").read_text().split())

Samples = npt.NDArray[np.float32]


class Aligner:
    """The saved model."""

    def __init__(self, folder: Path) -> None:
        self.model = Wav2Vec2ForCTC.from_pretrained(folder).float().eval()
        self.extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)

    @torch.no_grad()
    def log_probs(self, samples: Samples) -> Samples:
        """[frames, ids]."""
        inputs = self.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return self.model(inputs.input_values).logits[0].log_softmax(-1).numpy()


def _row(name: str, examples: Sequence[Example], aligned: Sequence[Aligned]) -> str:
    errors = [a.ends * FRAME_MS - e.ends / SAMPLE_RATE * 1000 for e, a in zip(examples, aligned, strict=True)]
    inner = np.concatenate([error[e.closed] for error, e in zip(errors, examples, strict=True)])
    last = np.concatenate([error[~e.closed] for error, e in zip(errors, examples, strict=True)])
    confidence = np.array([a.confidence for a in aligned])
    return (
        f"{name:32} {len(inner):5} words: median {np.median(np.abs(inner)):5.1f} ms,"
        f" 90 % {np.percentile(np.abs(inner), 90):5.1f} ms, bias {np.median(inner):+5.1f} ms;"
        f" before silence {np.median(np.abs(last)):5.1f} ms;"
        f" confidence {np.median(confidence):.3f}, least {confidence.min():.3f}"
    )


def _wrong(aligner: Aligner, examples: Sequence[Example]) -> str:
    """Confidence where the transcript is another sentence of about the same length, with few words in common."""
    order = np.argsort([len(" ".join(example.words)) for example in examples], kind="stable")
    seen = []
    for one, other in zip(order, np.roll(order, 1), strict=True):
        words, spoken = examples[other].words, examples[one]
        log_probs = aligner.log_probs(spoken.samples)
        common = set(words) & set(spoken.words) - {"the"}
        if len(common) <= 1 and len(log_probs) > 2 * len(" ".join(words)):
            seen.append(align(log_probs, words).confidence)
    return (
        f"wrong transcript, {len(seen)} sentences: confidence {np.median(seen):.3f},"
        f" 90 % below {np.percentile(seen, 90):.3f}, greatest {max(seen):.3f}"
    )


def _unseen_words() -> list[Example]:
    rng = np.random.Generator(np.random.Philox(SEED))
    sentences = [[UNSEEN[int(i)] for i in rng.choice(len(UNSEEN), 7, replace=False)] for _ in range(80)]
    passages = [(voice, sentences[index::4]) for index, voice in enumerate(TRAIN_VOICES)]
    spoken = zip(passages, speak_passages(passages), strict=True)
    return _sentences(
        [[hear(words, u) for words, u in zip(passage[1], heard, strict=True)] for passage, heard in spoken]
    )


def _sentences(passages: Sequence[Sequence[Sentence]]) -> list[Example]:
    return [join([sentence], [0.3]) for passage in passages for sentence in passage]


def report(folder: Path) -> None:
    """Print errors of word ends and confidences for known and unknown voices, clean and disturbed."""
    aligner = Aligner(folder)
    known = list(speak([*TRAIN_VOICES, *training_voices(20, 5)[-4:]], SEED))
    unknown = list(speak(HELDOUT_VOICES, SEED + 1))
    passages = [join(passage, [0.3] * len(passage)) for passage in known[:4]]
    ways: dict[str, tuple[list[Example], Callable[[Samples], Samples]]] = {
        "known voices": (_sentences(known[:4]), lambda x: x),
        "other accents, variants, rates": (_sentences(known[4:]), lambda x: x),
        "held-out voices": (_sentences(unknown), lambda x: x),
        "known voices, unseen words": (_unseen_words(), lambda x: x),
        "known voices, noise 15 dB": (_sentences(known[:4]), lambda x: add_noise(x, 15.0, 1)),
        "known voices, low-pass 3.5 kHz": (_sentences(known[:4]), lambda x: low_pass(x, 3500.0)),
        "known voices, 80 s at once": (passages, lambda x: x),
    }
    for name, (examples, change) in ways.items():
        aligned = [align(aligner.log_probs(change(example.samples)), example.words) for example in examples]
        print(_row(name, examples, aligned), flush=True)
    print(_wrong(aligner, _sentences([*known, *unknown])))
