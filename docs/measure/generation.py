"""Measures the time per unit of generation, with caches and without.

Usage, from the root of the repository:
    python docs/measure/generation.py [--config configs/quickstart.yaml] [--units 800] [--window 1024] [--threads 1]

A model with random weights continues a prompt of speech with caches, up to `--units` units. Then the same process
continues the same prompt by computing the whole context at every step, and must draw the same units. The likeliest unit
is taken, so that no random numbers are needed. Shown is the median of the CPU milliseconds of this process per unit
over the steps before each length, and the sum over all units; other programs hardly matter with one thread.
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


def row(first: str, whole: float, cached: float) -> None:
    """Print a row of the table."""
    print(f"| {first} | {whole:.2f} | {cached:.2f} | {whole / cached:.1f} |")


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
    cached, after = timed(CachedDecoder(model, "speech", given.window), vocabulary, prompt, given.units)
    plain, before = timed(PlainDecoder.of(model, "speech", given.window), vocabulary, prompt, given.units)
    fitting = given.window - PROMPT
    if not np.array_equal(cached[:fitting], plain[:fitting]):  # what follows has lost another part of the context
        sys.exit(f"the units differ from number {np.flatnonzero((cached != plain).any(axis=1))[0]} on")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {version('torch')}")
    print(f"{given.config}, window {given.window}, {given.threads} thread\n")
    print("| units | whole context, ms per unit | with caches, ms per unit | ratio |")
    print("|---:|---:|---:|---:|")
    for length in (length for length in LENGTHS if length <= given.units):
        row(str(length), *(1000 * statistics.median(times[length - STEPS : length - 1]) for times in (before, after)))
    row(f"all {given.units}, seconds", sum(before), sum(after))


if __name__ == "__main__":
    main()
