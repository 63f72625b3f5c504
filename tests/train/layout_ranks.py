"""Run by torchrun: trains under one layout after the other, and leaves what each rank knows of it.

Usage: layout_ranks.py FOLDER SETS CASES; CASES is a pickled list of cases, FOLDER gets a file per case and rank.
"""

import gc
import pickle
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from layout_cases import Case, Outcome, run
from layout_traps import taken_away

from tolktrain.errors import UserError
from tolktrain.parallel.layout import initialize, release_groups


def main() -> None:
    """All cases, in the same processes."""
    folder, sets, listed = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    initialize()
    release_groups()
    cases: list[Case] = pickle.loads(listed.read_bytes())
    for case in cases:
        started = time.perf_counter()
        outcome: Outcome | str
        with taken_away(case.without):
            try:
                outcome = run(case, folder, sets)
            except UserError as error:
                outcome = str(error)
        torch.save(outcome, folder / f"{case.name}-{dist.get_rank()}.pt")
        release_groups()
        gc.collect()  # the engine is in cycles with the groups, whose threads would go on polling in all later cases
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"{time.perf_counter() - started:6.2f} s  {case.name}", flush=True)


if __name__ == "__main__":
    main()
