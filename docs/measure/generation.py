"""Measures the time per unit of generation, with caches and without.

Usage, from the root of the repository:
    python docs/measure/generation.py [--config configs/quickstart.yaml] [--units 800] [--window 1024] [--threads 1]

A model with random weights continues a prompt of speech with caches, up to `--units` units. At each length of the
table, the same process then continues from there by computing the whole context at every step, and must draw the same
units. The likeliest unit is taken, so that no random numbers are needed. Shown is the median of the CPU milliseconds of
this process per unit over the steps before each length; other programs hardly matter with one thread.
"""

import argparse
import platform
import statistics
import sys
import time
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch

from tolktrain.config.load import load_config
from tolktrain.data.sequences import IntArray
from tolktrain.generate.decoding import CachedDecoder, Decoder, PlainDecoder
from tolktrain.generate.sampling import Sampling, SpeechLimits, sample_speech
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

LENGTHS = (50, 100, 200, 400, 800, 1600)
STEPS = 12
PROMPT = 16


def timed(decoder: Decoder, vocabulary: Vocabulary, prompt: IntArray, units: int) -> tuple[IntArray, list[float]]:
    """The units [units, K] that are drawn, and CPU seconds of each step after the first."""
    limits, times = SpeechLimits(lambda drawn: 0.0, 1.0, units), list[float]()
    likeliest = Sampling(temperature=0.0, top_k=1, seed=0)
    drawn = sample_speech(
        decoder, [prompt], vocabulary, likeliest, limits, on_step=lambda row, column: times.append(time.process_time())
    )
    return drawn[0], [end - begin for begin, end in pairwise(times)]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--units", type=int, default=800)
    parser.add_argument("--window", type=int, default=1024, help="positions of context")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    architecture = Architecture.from_config(load_config(given.config).model)
    model = SmolTolk(architecture, seed=0).eval()
    vocabulary = Vocabulary(architecture.text_vocab_size, 0, architecture.num_units, architecture.num_codebooks)
    prompt = np.random.default_rng(0).integers(0, vocabulary.num_units, (PROMPT, vocabulary.num_codebooks))
    for warm in (CachedDecoder(model, "speech", 64), PlainDecoder.of(model, "speech", 64)):
        timed(warm, vocabulary, prompt, STEPS)  # the first calls prepare more
    units, after = timed(CachedDecoder(model, "speech", given.window), vocabulary, prompt, given.units)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {version('torch')}")
    print(f"{given.config}, window {given.window}, {given.threads} thread\n")
    print("| units | whole context, ms per unit | with caches, ms per unit | ratio |")
    print("|---:|---:|---:|---:|")
    for length in (length for length in LENGTHS if length <= given.units):
        begin = length - STEPS
        known = np.concatenate([prompt, units[:begin]])
        again, before = timed(PlainDecoder.of(model, "speech", given.window), vocabulary, known, STEPS)
        fits = PROMPT + length <= given.window  # beyond it, the two have cut the context at different places
        if fits and not np.array_equal(again, units[begin:length]):
            sys.exit(f"the units before {length} differ")
        whole, short = (1000 * statistics.median(times) for times in (before, after[begin : length - 1]))
        print(f"| {length} | {whole:.2f} | {short:.2f} | {whole / short:.1f} |", flush=True)


if __name__ == "__main__":
    main()
