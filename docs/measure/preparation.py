"""Measures `tolktrain prepare` on one core: hours of audio per file format, and text tokens per second.

Usage, from the root of the repository:
    OMP_NUM_THREADS=1 python docs/measure/preparation.py [--hours 1.0] [--neural]

Audio: utterances of 6 to 20 s at 16 kHz, a buzz with formants that change with every word, with word times; units of
log-mel k-means. CPU time of this process from files to shards in a folder, and of the single steps. Text: README and
documentation files of the installed Python packages, with a byte-level tokenizer of 40,000 ids trained on them. With
--neural, also models of the sizes in the published recipe, with random weights: HuBERT-base at 25 frames per second, of
which eleven layers are computed, and forced alignment by Wav2Vec2-base.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import streaming  # noqa: F401  imported here because its import time is not measured

from tolktrain.config.prepare import AlignmentConfig, PrepareConfig
from tolktrain.data.text_tokenizer import END_OF_TEXT, train_tokenizer
from tolktrain.prepare.job.parts import Workplace, do_part
from tolktrain.prepare.kinds import make_kind
from tolktrain.prepare.recordings.align.ctc import CtcAligner
from tolktrain.prepare.recordings.audio import AudioReader
from tolktrain.prepare.recordings.fitting import fit_if_missing
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.storage.open import open_storage
from tolktrain.units.hubert import HubertTokenizer
from tolktrain.units.load import load_speech_tokenizer

RATE = 16_000
WORDS = ("a", "the", "house", "river", "walked", "seven", "never", "tomorrow", "light", "between", "quietly", "stone")
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "opus": "OPUS"}


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time that this process needs."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def speak(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An utterance and its words."""
    pieces, words, now = [], [], 0.0
    pitch = rng.uniform(90, 220)
    while now < rng.uniform(6, 20):
        seconds = float(rng.uniform(0.15, 0.5))
        clock = np.arange(int(seconds * RATE)) / RATE
        formants = rng.uniform((300, 900, 2200), (800, 2000, 3200))
        harmonics = np.arange(1, 30) * pitch
        levels = np.exp(-(((harmonics[:, None] - formants) / 250) ** 2)).sum(axis=1) + 0.02
        pieces.append((levels[:, None] * np.sin(2 * np.pi * harmonics[:, None] * clock)).sum(axis=0))
        words.append({"word": str(rng.choice(WORDS)), "start": now, "end": now + len(clock) / RATE})
        now += len(clock) / RATE
    waveform = np.concatenate(pieces)
    return 0.3 * waveform / np.abs(waveform).max() + rng.normal(0, 0.003, len(waveform)), words


def make_corpus(folder: Path, hours: float, kind: str) -> Path:
    """Files of one kind and their manifest."""
    folder.mkdir()
    rng, done, lines = np.random.default_rng(0), 0.0, []
    while done < hours * 3600:
        waveform, words = speak(rng)
        name = f"{len(lines):05}.{kind}"
        soundfile.write(folder / name, waveform, RATE, format="OGG" if kind == "opus" else None, subtype=FORMATS[kind])
        entry = {
            "audio": name,
            "source": f"chapter {len(lines) // 50}",
            "duration": len(waveform) / RATE,
            "words": words,
        }
        lines.append(json.dumps({**entry, "text": " ".join(word["word"] for word in words)}))
        done += len(waveform) / RATE
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def whole(config: PrepareConfig) -> float:
    """CPU time of all parts."""
    kind, storage = make_kind(config), open_storage(config.output)
    parts, rejected = kind.parts()
    assert not rejected

    def work() -> None:
        for number, part in enumerate(parts):
            assert not do_part(config, kind, Workplace(storage, ""), number, part, lambda items: None).failures

    return cpu_seconds(work)


def measure_audio(folder: Path, hours: float, kind: str, tokenizer: Path) -> list[str]:
    """A row of the table."""
    manifest = make_corpus(folder / kind, hours, kind)
    settings = {
        "name": kind,
        "output": str(folder / f"{kind}-output"),
        "text_tokenizer": str(tokenizer),
        "recordings": {
            "manifest": str(manifest),
            "speech_tokenizer": {"path": str(folder / "units"), "fit": {"num_units": 500, "hours": 0.25}},
        },
    }
    config = PrepareConfig.model_validate(settings)
    fit_if_missing(config, lambda text: None)
    assert config.recordings is not None
    utterances, _ = read_manifest(config.recordings)
    speech = load_speech_tokenizer(folder / "units")
    waveforms = []

    def read() -> None:
        with AudioReader() as reader:
            waveforms.extend(reader.read(utterance, RATE) for utterance in utterances)

    read_seconds = cpu_seconds(read)
    unit_seconds = cpu_seconds(lambda: [speech.encode(waveform) for waveform in waveforms])
    seconds = sum(map(len, waveforms)) / RATE
    rates = [seconds / spent for spent in (whole(config), read_seconds, unit_seconds)]
    return [kind, *(f"{rate:,.0f}" for rate in rates)]


def measure_text(folder: Path) -> str:
    """Text tokens of a CPU second."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*")):
        if path.name == "METADATA" or path.suffix in (".md", ".rst"):
            texts.append(path.read_text(encoding="utf-8", errors="ignore"))
    texts = [text for text in texts if len(text) > 200]
    (folder / "text").mkdir()
    train_tokenizer((" " + text for text in texts), 40_000).save(str(folder / "text" / "tokenizer.json"))
    (folder / "text" / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    # Enough for a steady rate.
    texts *= max(30_000_000 // sum(map(len, texts)), 1)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {
        "name": "text",
        "output": str(folder / "text-output"),
        "text_tokenizer": str(folder / "text"),
        "text": {"files": [str(folder / "text.jsonl")]},
    }
    spent = whole(PrepareConfig.model_validate(settings))
    tokens = 0
    for path in (folder / "text-output" / "parts").glob("*.json"):
        tokens += sum(count["num_text_tokens"] for count in json.loads(path.read_text())["counts"].values())
    return f"{tokens / spent / 1e6:.2f}M tokens per second ({tokens / 1e6:.1f}M tokens of {len(texts)} documents)"


def measure_neural(folder: Path) -> tuple[float, float]:
    """Hours of audio per core-hour, for units and for alignment, by models of the published sizes."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    shape = {"conv_dim": (512,) * 8, "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2)}
    HubertModel(HubertConfig(num_feat_extract_layers=8, **shape)).save_pretrained(folder / "hubert")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(letters))).save_pretrained(folder / "ctc")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "ctc")
    (folder / "ctc" / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    centroids = np.random.default_rng(0).normal(size=(500, 768)).astype(np.float32)
    hubert = HubertTokenizer.create(folder / "neural", str(folder / "hubert"), centroids, 11, normalize=False)
    aligner = CtcAligner(AlignmentConfig(method="ctc", model=str(folder / "ctc")), "cpu")
    rng = np.random.default_rng(0)
    spoken = [speak(rng) for _ in range(5)]
    waveforms = [waveform.astype(np.float32) for waveform, _ in spoken]
    texts = [" ".join(word["word"] for word in words) for _, words in spoken]
    seconds = sum(map(len, waveforms)) / RATE
    spent = (cpu_seconds(lambda: hubert.encode_batch(waveforms)), cpu_seconds(lambda: aligner.align(waveforms, texts)))
    return seconds / spent[0], seconds / spent[1]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=float, default=1.0, help="audio per file format")
    parser.add_argument("--neural", action="store_true", help="measure models of the published sizes too")
    options = parser.parse_args()
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "soundfile", "tokenizers"))
    print(f"`{' '.join(['python', *sys.argv])}`, {datetime.date.today()}")
    print(f"{cpu.split(': ')[1]}, Python {platform.python_version()}, {libraries}; one thread, CPU time\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = Path(__file__).resolve().parents[2] / "data" / "sample" / "text_tokenizer"
        print("| files | hours of audio per core-hour, all | reading only | units only |")
        print("|---|---:|---:|---:|")
        for kind in FORMATS:
            print(f"| {' | '.join(measure_audio(folder, options.hours, kind, tokenizer))} |", flush=True)
        print(f"\nText: {measure_text(folder)}")
        if options.neural:
            units, alignment = measure_neural(folder)
            print(f"HuBERT units: {units:.1f} hours of audio per core-hour; forced alignment: {alignment:.1f}")


if __name__ == "__main__":
    main()
