"""Memory of steps of the shipped configurations: memory.py CONFIG STEPS ACCUMULATION [dotted.key=value ...]

Prints the GiB that torch has allocated at most and has reserved, after each step. Not part of the tests: see "Memory of
the shipped models" in docs/null-gpu.md.
"""

import random
import sys
from pathlib import Path

import rehearsal
import torch

SHARES = (0.28, 0.46, 0.97)  # of speech; the first is the least that interleaved data can have


def main(config: str, steps: str, accumulation: str, *overrides: str) -> None:
    """Train."""
    rehearsal.CONFIG = Path(config)  # type: ignore[misc]
    run, drawn = rehearsal.Rehearsal(*overrides, accumulation=int(accumulation)), random.Random(0)
    for step in range(int(steps)):
        batches = []
        for _ in range(int(accumulation)):
            rehearsal.SPEECH_SHARE = drawn.choice(SHARES)  # type: ignore[misc]
            batches.append(run.batches(step)[0])
        run.step(batches)
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        print(f"step {step}: {allocated / 2**30:.2f} GiB allocated, {reserved / 2**30:.2f} GiB reserved", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
