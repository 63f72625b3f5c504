"""Memory that `plan` computes for layouts against what a null GPU's allocator gives out.

    PYTHONPATH=tests/plan python tests/plan/grid.py        # the large grid, as a table in Markdown
    PYTHONPATH=tests/plan python tests/plan/grid.py --models 2b --only "ZeRO 1;pipeline 2"
    PYTHONPATH=tests/plan python tests/plan/grid.py --output docs/benchmarks/2026-11-30-plan/README.md

A layout of the 150M model takes about 4 seconds of CPU time, one of the 2B model more. The rehearsed ranks are the
first and the last pipeline stage's first ranks of a job, in which only this rank exists. With --output, the section
"Memory" of a Markdown file is replaced, or appended.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import section, write_section

from tolktrain.config.load import load_config
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.local_backbone import local_architecture
from tolktrain.plan.assumptions import Assumptions, gib
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.memory import MemoryEstimate, rank_memories
from tolktrain.plan.rehearse import run_cases
from tolktrain.plan.time import INTERLEAVED_SPEECH, Shape

# Above what any layout needs. The allocator reserves addresses for 1.125 times as much in each segment, and keeps them:
# with 2,000 GiB, 14 layouts exhaust a process's 128 TiB of addresses.
GPU_GIB = 200.0
BENCH = Path(__file__).resolve().parents[2] / "configs" / "bench"
RECOMPUTED = "train.activation_checkpointing=layers"
PIPELINE = ("parallel.pipeline_parallel_size=2", "deepspeed.config=configs/deepspeed/pipeline.json")
TENSOR = ("parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true")
# An even number of heads, for tensor ranks.
EVEN = tuple(
    f"model.backbone.{entry}" for entry in ("hidden_size=512", "num_attention_heads=8", "num_key_value_heads=4")
)


def deepspeed(name: str) -> str:
    """A file of configs/deepspeed."""
    return f"deepspeed.config=configs/deepspeed/{name}.json"


@dataclass(frozen=True)
class Layout:
    """A layout of a configuration."""

    name: str
    config: str  # in configs/bench
    overrides: tuple[str, ...]
    world_size: int = 8
    accumulation: int = 2
    stage: str = "joint"


@dataclass(frozen=True)
class Row:
    """One rank of a layout."""

    layout: Layout
    rank: int
    computed: MemoryEstimate
    rehearsed: Mapping[str, Any]

    @property
    def error(self) -> float:
        """Of the computed peak."""
        return self.computed.allocated_gib / gib(self.rehearsed["allocated"]) - 1

    def cells(self) -> str:
        """A line of the table."""
        reserved = self.computed.allocated_gib + self.computed.parts()["reserve"]
        found = {name: gib(self.rehearsed[name]) for name in ("allocated", "held", "reserved")}
        return (
            f"| {self.layout.name} | {self.layout.world_size} | {self.rank} | {self.computed.allocated_gib:.2f}"
            f" | {found['allocated']:.2f} | {self.error:+.1%} | {found['held']:.2f} | {reserved:.2f}"
            f" | {found['reserved']:.2f} |"
        )


def compare(layouts: Sequence[Layout]) -> Iterator[Row]:
    """The rows of all layouts; one process rehearses them."""
    ranks = [(layout, *rank) for layout in layouts for rank in _ranks(layout)]
    cases = [
        {
            "config": str(BENCH / layout.config),
            "overrides": layout.overrides,
            "rank": rank,
            "world_size": layout.world_size,
            "accumulation": layout.accumulation,
            "speech_share": INTERLEAVED_SPEECH,
            "stage": layout.stage,
        }
        for layout, rank, _ in ranks
    ]
    for (layout, rank, computed), found in zip(ranks, run_cases(cases, GPU_GIB), strict=True):
        yield Row(layout, rank, computed, found)


def _ranks(layout: Layout) -> Iterator[tuple[int, MemoryEstimate]]:
    config = load_config(BENCH / layout.config, layout.overrides)
    parallel, train = config.parallel, config.train
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    data = layout.world_size // tensor // pipeline
    size = train.micro_batch_size * layout.accumulation * data
    config = config.model_copy(update={"train": train.model_copy(update={"global_batch_size": size})})
    architecture = local_architecture(config.model, "plan")
    candidate = configured_candidate(config, architecture, Cluster(layout.world_size, min(layout.world_size, 8)))
    (stage,) = (stage for stage in train.stages if stage.name == layout.stage)
    counts = StepCounts.average(train.sequence_length, INTERLEAVED_SPEECH, 1.0, 60)
    shape = Shape(architecture, counts, train.sequence_length, stage.trainable)
    memories = rank_memories(shape, candidate, Assumptions(), INTERLEAVED_SPEECH)
    for pipeline_rank in sorted({0, pipeline - 1}):
        yield pipeline_rank * data * tensor, memories[pipeline_rank]


def grid(config: str, *size: str) -> list[Layout]:
    """Layouts of a model."""
    even = EVEN if "150m" in config else ()

    def layout(name: str, *overrides: str, **options: Any) -> Layout:
        return Layout(name, config, (*size, *overrides), **options)

    one = "train.micro_batch_size=1"
    return [
        layout("ZeRO 0", deepspeed("zero0")),
        *(layout(f"ZeRO {stage}", deepspeed(f"zero{stage}")) for stage in (1, 2, 3)),
        *(layout(f"ZeRO {stage}, 64 ranks", deepspeed(f"zero{stage}"), world_size=64) for stage in (1, 2, 3)),
        *(layout(f"ZeRO {stage}, recomputed", deepspeed(f"zero{stage}"), RECOMPUTED) for stage in (1, 2, 3)),
        *(layout(f"ZeRO {stage}, micro batch 1", deepspeed(f"zero{stage}"), one) for stage in (1, 2, 3)),
        *(layout(f"ZeRO {stage}, one micro batch", deepspeed(f"zero{stage}"), accumulation=1) for stage in (1, 2, 3)),
        layout("ZeRO 1, one micro batch, recomputed", deepspeed("zero1"), RECOMPUTED, accumulation=1),
        *(layout(f"adapter, ZeRO {stage}", deepspeed(f"zero{stage}"), stage="adapter") for stage in (1, 2, 3)),
        layout("adapter, ZeRO 1, recomputed", deepspeed("zero1"), RECOMPUTED, stage="adapter"),
        layout("ZeRO 3, offload", deepspeed("zero3-offload")),
        *(layout(f"tensor 2, ZeRO {stage}", *TENSOR, *even, deepspeed(f"zero{stage}")) for stage in (1, 2)),
        layout("tensor 2, ZeRO 1, recomputed", *TENSOR, *even, deepspeed("zero1"), RECOMPUTED),
        layout("pipeline 2", *PIPELINE, accumulation=4),
        layout("pipeline 2, recomputed", *PIPELINE, RECOMPUTED, accumulation=4),
        layout("pipeline 2, adapter", *PIPELINE, accumulation=4, stage="adapter"),
        layout("pipeline 2, tensor 2", *PIPELINE, *TENSOR, *even, accumulation=4),
    ]


# The widths are real, so that activations, logits and states outweigh constants.
SIZES: Mapping[str, Sequence[str]] = {
    "150m": ("model.backbone.num_layers=4", "train.micro_batch_size=4"),
    "2b": ("train.micro_batch_size=2",),
}
SECTION = "## Memory"
ABOUT = (
    "The models are configs/bench/smoltolk-150m.yaml with 4 backbone layers and micro batches of 4 (with tensor"
    " parallelism: width 512 and 8 heads), and configs/bench/smoltolk-2b.yaml with micro batches of 2. A step has two"
    " micro batches, with a pipeline four, unless the name says one; 46 % of the positions are speech. GiB of the named"
    " rank of a job; `held` is allocated after a step, and `reserved, computed` contains the assumed reserve. The stage"
    " is `joint` unless the name begins with `adapter`, in which the backbone is frozen."
)


def table(model: str, only: str | None) -> Iterator[str]:
    """Lines of a model."""
    layouts = grid(f"smoltolk-{model}.yaml", *SIZES[model])
    if only is not None:
        names = only.split(";")
        layouts = [layout for layout in layouts if layout.name in names]
        assert len(layouts) == len(names), names
    yield (
        f"| {model.upper()} | GPUs | rank | computed | rehearsed | error | held | reserved, computed"
        " | reserved, rehearsed |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    errors = []
    for row in compare(layouts):
        errors.append(row.error)
        yield row.cells()
    yield ""
    yield f"Errors from {min(errors):+.1%} to {max(errors):+.1%}."
    yield ""


def main() -> None:
    """Print the large grid, or a part of it, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(SIZES), help=f"by commas, of {', '.join(SIZES)}")
    parser.add_argument("--only", help="names of layouts, by semicolons")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    lines = []
    for model in options.models.split(","):
        for line in table(model, options.only):
            print(line, flush=True)
            lines.append(line)
    if options.output:
        facts = f"on the null GPU: `{shlex.join(['PYTHONPATH=tests/plan', 'python', *sys.argv])}`."
        write_section(options.output, SECTION, section(SECTION, facts, ABOUT, lines[:-1]))


if __name__ == "__main__":
    main()
