"""Memory that `plan` computes for layouts against what a null GPU's allocator gives out, as a table.

    python tests/plan/grid.py CASES.json [FILE.md]

CASES.json: [{"config": ..., "name": ..., "overrides": [...], "world_size": 8, "stage": null, "accumulation": 2,
"speech_share": 0.46}].
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.load import load_config
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.local_backbone import local_architecture
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.memory import MemoryEstimate, rank_memories
from tolktrain.plan.time import Shape

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One rank of a layout."""

    name: str
    rank: int
    computed: MemoryEstimate
    rehearsed: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """Computed over rehearsed peak."""
        return self.computed.allocated_gib * 2**30 / self.rehearsed["allocated"]

    def line(self) -> str:
        c, r = self.computed, self.rehearsed
        g = 2**30
        parts = " ".join(f"{k[:5]} {v * 1024:.0f}" for k, v in c.parts().items() if v > 5e-4)
        return f"{self.name:34} r{self.rank:<3} {self.ratio - 1:+7.1%}  computed {1024 * c.allocated_gib:8.0f} rehearsed {r['allocated'] / 2**20:8.0f} held {r['held'] / 2**20:7.0f} reserved {r['reserved'] / 2**20:8.0f} | {parts} {r['failure']}"


def rows(cases: Sequence[Mapping[str, Any]]) -> list[Row]:
    given, names, computed = [], [], []
    for case in cases:
        config = load_config(case["config"], case["overrides"])
        world, parallel = case["world_size"], config.parallel
        tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
        data = world // tensor // pipeline
        size = config.train.micro_batch_size * case["accumulation"] * data
        config = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})
        architecture = local_architecture(config.model, "plan")
        candidate = configured_candidate(config, architecture, Cluster(world, min(world, 8)))
        stage = next((s for s in config.train.stages if s.name == case.get("stage")), config.train.stages[-1])
        counts = StepCounts.average(config.train.sequence_length, case["speech_share"], 1.0, 60)
        shape = Shape(architecture, counts, config.train.sequence_length, stage.trainable)
        memories = rank_memories(shape, candidate, Assumptions(), case["speech_share"])
        for pipe in sorted({0, pipeline - 1}):
            rank = pipe * data * tensor
            given.append(
                {k: case[k] for k in ("config", "overrides", "world_size", "accumulation", "speech_share")}
                | {"rank": rank, "stage": stage.name}
            )
            names.append(f"{case['name']}")
            computed.append(memories[pipe])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cases.json")
        file.write_text(json.dumps(given))
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "tools/nullgpu/run.py"),
                "--memory",
                "2000",
                "--",
                sys.executable,
                "-m",
                "tolktrain.benchmark.rehearsal",
                str(file),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-6000:])
            raise SystemExit(1)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    return [Row(n, g["rank"], c, r) for n, g, c, r in zip(names, given, computed, found)]


if __name__ == "__main__":
    for row in rows(json.loads(Path(sys.argv[1]).read_text())):
        print(row.line(), flush=True)
