"""Measures the host's time of a training step: this tree against other ones, on the null GPU, which takes no time.

Usage, from the root of the repository, on a quiet machine:
    git worktree add /tmp/earlier COMMIT
    python docs/measure/host_time.py [--repeat 5] [--steps 20] [--micro-batch 8] /tmp/earlier

Steps of one micro batch of the 150M model. Each tree is measured in processes of its own, in turn with the others, with
one thread. Shown are the least and the median milliseconds of all steps, in CPU time of the process and on the wall,
without the first three steps of each process, and their ratio to this tree's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARMUP = 3


def measure(tree: Path, steps: int, micro_batch: int) -> None:
    """Be a training process of a tree: print its times in JSON."""
    sys.path[:0] = [str(tree / "tests/nullgpu"), str(tree / "tools"), str(tree / "src")]
    import torch
    from rehearsal import Rehearsal

    torch.set_num_threads(1)
    training = Rehearsal(f"train.micro_batch_size={micro_batch}")
    batches = [training.batches(seed) for seed in range(4)]
    times = []
    for number in range(WARMUP + steps):
        wall, cpu = time.perf_counter(), time.process_time()
        training.step(batches[number % len(batches)])
        times.append((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
    print(json.dumps(times[WARMUP:]), flush=True)
    os._exit(0)  # nothing has to be finished


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, help="other checkouts")
    parser.add_argument("--repeat", type=int, default=5, help="processes of each tree")
    parser.add_argument("--steps", type=int, default=20, help="of each process")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.steps, options.micro_batch)
    trees = [ROOT, *(tree.resolve() for tree in options.trees)]
    found: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in trees}
    null_gpu = [sys.executable, str(ROOT / "tools/nullgpu/run.py"), "--memory", "139", "--"]
    arguments = ["--steps", str(options.steps), "--micro-batch", str(options.micro_batch)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    for _ in range(options.repeat):
        for tree in trees:
            command = [*null_gpu, sys.executable, __file__, "--measure", str(tree), *arguments]
            done = subprocess.run(command, env=environ, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
            found[tree] += json.loads(done.stdout.splitlines()[-1])
    print(f"150M, micro batch {options.micro_batch}, {len(found[ROOT])} steps of each tree\n")
    print("| tree | CPU ms, least | median | wall ms, least | median | of this tree: CPU, least | wall, least |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    least = [min(column) for column in zip(*found[ROOT], strict=True)]
    for tree, times in found.items():
        columns = list(zip(*times, strict=True))
        cells = [f"{figure(column):.1f}" for column in columns for figure in (min, statistics.median)]
        cells += [f"{min(column) / own:.2f}" for column, own in zip(columns, least, strict=True)]
        print(f"| {'this one' if tree == ROOT else tree} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
