"""Measures our step on a CPU against that of the reference implementation, step by step in turn.

Usage, from the root of the repository, on a quiet machine:
    python docs/measure/reference_step.py [--steps 10] [--config configs/bench/cpu.yaml] [key=value ...]

`tolktrain bench --against published` measures one after the other, so that a machine that slows down in between changes
the ratio. Here both train on the same batches in one process, in turn. Shown are the least and the median seconds of a
step, without the first one, and the ratios.
"""

import argparse
import statistics
import time

import torch

from tolktrain.benchmark.providers import OURS, Setting, make_provider
from tolktrain.benchmark.steps import StepShape, sequences_of, timed_steps, with_global_batch
from tolktrain.config.load import load_config
from tolktrain.model.local_backbone import local_architecture
from tolktrain.parallel.layout import initialize
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.process import set_threads
from tolktrain.train.resolved import ResolvedSettings

SPEECH_SHARE = 0.46  # of the positions, as `tolktrain bench` has it


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--config", default="configs/bench/cpu.yaml")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    config = with_global_batch(config, config.train.micro_batch_size)
    architecture = local_architecture(config.model, "bench")
    layout = initialize()
    set_threads(layout, config.train.cpu_threads)
    stage = config.train.stages[-1]
    shape = StepShape(config.train.global_batch_size, config.train.micro_batch_size, layout)
    steps = timed_steps(sequences_of(config, architecture, SPEECH_SHARE), shape, 1 + options.steps)
    settings = ResolvedSettings.of(config, architecture, layout)
    rates = learning_rates_at(stage, 0, stage.tokens)
    setting = Setting(config, architecture, stage, layout, rates, settings)
    providers = (OURS, make_provider("published", compiles=False))
    runners = {provider.name: provider.start(setting) for provider in providers}
    times: dict[str, list[float]] = {name: [] for name in runners}
    losses: dict[str, list[float]] = {name: [] for name in runners}
    for batches in steps:
        for name, runner in runners.items():
            begun = time.perf_counter()
            losses[name].append(runner.step(batches).loss)
            times[name].append(time.perf_counter() - begun)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps, {options.config}\n")
    print("| | seconds, least | median | of ours: least | median | first loss |")
    print("|---|---:|---:|---:|---:|---:|")
    own = [figure(times[OURS.name][1:]) for figure in (min, statistics.median)]
    for name, of_one in times.items():
        figures = [figure(of_one[1:]) for figure in (min, statistics.median)]
        cells = [f"{figure:.3f}" for figure in figures]
        cells += [f"{figure / base:.2f}" for figure, base in zip(figures, own, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {losses[name][0]:.6f} |")


if __name__ == "__main__":
    main()
