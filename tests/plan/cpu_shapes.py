"""Predicted against measured CPU seconds of a training step, for several shapes of configs/bench/cpu.yaml, by hand.

    python tests/plan/cpu_shapes.py [SHAPE,SHAPE] [--output README.md]

About three minutes on a quiet machine. The time is the CPU time of the process with one thread, the median of the
steps after a warm-up. The factor of time is calibrated on the first shape. With --output, the section "Time on a
processor" of a Markdown file is replaced, or appended.
"""

import argparse
import gc
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from page import section, write_section

from tolktrain.benchmark.providers import EngineRunner, Setting
from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.cluster.accelerators import CPU
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.config.training import StageConfig
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.local_backbone import local_architecture
from tolktrain.parallel.layout import initialize
from tolktrain.plan.assumptions import cpu_assumptions
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.time import Shape, StepEstimate, estimate_step
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.resolved import ResolvedSettings

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "bench" / "cpu.yaml"
SMALL = ("train.micro_batch_size=1", "train.global_batch_size=1", "train.sequence_length=512")
WIDE = ("hidden_size=768", "ffn_hidden_size=2048", "num_attention_heads=12", "num_key_value_heads=4", "num_layers=4")
SHAPES: Mapping[str, Sequence[str]] = {
    "base": (),
    "wider": tuple(f"model.backbone.{entry}" for entry in WIDE),
    "deeper": ("model.backbone.num_layers=16",),
    "vocab": ("model.backbone.text_vocab_size=24576",),
    "longer": ("train.sequence_length=1024",),
    "micro 2": ("train.micro_batch_size=2", "train.global_batch_size=2"),
    "recompute": ("train.activation_checkpointing=layers",),
    "adapter": (),
    "ZeRO 1": ("deepspeed.zero_stage=1",),
}


@dataclass(frozen=True)
class Case:
    """A step of one shape."""

    config: Config
    architecture: Architecture
    stage: StageConfig

    @classmethod
    def of(cls, name: str) -> "Case":
        """By its name."""
        config = load_config(CONFIG, [*SMALL, *SHAPES[name]])
        stages = {stage.name: stage for stage in config.train.stages}
        return cls(config, local_architecture(config.model, "plan"), stages.get(name, config.train.stages[-1]))

    def predicted(self) -> StepEstimate:
        """Without a calibration."""
        length = self.config.train.sequence_length
        shape = Shape(self.architecture, StepCounts.average(length, 0.46, 1.0, 60), length, self.stage.trainable)
        candidate = configured_candidate(self.config, self.architecture, Cluster(1, 1))
        return estimate_step(shape, candidate, CPU, cpu_assumptions())

    def measured(self) -> list[float]:
        """CPU seconds of three steps."""
        train, layout = self.config.train, initialize()
        units = units_per_word(0.46, self.config.data.interleaving, 1)
        batches = random_batches(
            4,
            train.micro_batch_size,
            train.sequence_length,
            self.architecture.text_vocab_size,
            Speech(self.architecture.num_units, 1, units),
            self.config.data.interleaving,
            0,
        )
        settings = ResolvedSettings.of(self.config, self.architecture, layout)
        rates = learning_rates_at(self.stage, 0, self.stage.tokens)
        runner = EngineRunner(Setting(self.config, self.architecture, self.stage, layout, rates, settings))
        seconds = []
        for batch in batches:
            started = time.process_time()
            runner.step([batch])
            seconds.append(time.process_time() - started)
        runner.close()
        gc.collect()
        return seconds[1:]


SECTION = "## Time on a processor"
ABOUT = (
    "The shapes are those of configs/bench/cpu.yaml with one sequence of 512 positions and one change each; `adapter`"
    " is the stage with a frozen backbone. CPU seconds of a step, the median of three. One factor is calibrated on the"
    " first shape. The rates of attention and memory that `plan --device cpu` assumes were chosen with these shapes in"
    " view."
)


def rows(names: Sequence[str]) -> Iterator[str]:
    """Lines of the table."""
    torch.set_num_threads(1)
    factor = 0.0
    yield "| shape | measured, range | median | predicted | error |"
    yield "|---|---:|---:|---:|---:|"
    for name in names:
        case = Case.of(name)
        measured, predicted = case.measured(), case.predicted().seconds
        found = statistics.median(measured)
        error = f"{factor * predicted / found - 1:+.0%}" if factor else "calibrated"
        factor = factor or found / predicted
        spread = f"{min(measured):.2f} to {max(measured):.2f}"
        yield f"| {name} | {spread} | {found:.2f} | {factor * predicted:.2f} | {error} |"


def facts(load: float) -> str:
    """How it was measured."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{cpu[1] if cpu else platform.machine()}, float32, one thread, PyTorch {torch.__version__}, load average"
        f" {load:.1f}: `{shlex.join(['python', *sys.argv])}`."
    )


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", nargs="?", help=f"by commas, of {', '.join(SHAPES)}")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    names = options.shapes.split(",") if options.shapes else list(SHAPES)
    load, lines = os.getloadavg()[0], []
    for line in rows(names):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        write_section(options.output, SECTION, section(SECTION, facts(load), ABOUT, lines))


if __name__ == "__main__":
    main()
