"""Rounds of processes that take the lease of one run at the same instant.

Usage: lease_race.py FOLDER PROCESSES ROUNDS. Prints for each round a JSON list of what each process got: its token, or
the message it was refused with. The winner leaves without releasing after each odd round.
"""

import json
import multiprocessing
import os
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.runs.lease import Lease

LEASE_SECONDS = 15.0  # a loaded machine may keep the winner from renewing for seconds


def compete(folder: Path, releases: bool, start: Barrier, finish: Barrier, answer: int) -> None:
    """Try to take the lease when all are ready; hold it until all have tried."""
    lease: Lease | None = None
    start.wait()
    try:
        lease = Lease.take(folder, report=lambda _: None, lease_seconds=LEASE_SECONDS)
        got: int | str = lease.token
    except UserError as error:
        got = str(error)
    os.write(answer, json.dumps(got).encode() + b"\n")
    finish.wait()
    if lease is not None and releases:
        lease.release()
    os._exit(0)


def main(folder: Path, num_processes: int, num_rounds: int) -> None:
    """All rounds, one after the other."""
    context = multiprocessing.get_context("fork")  # of a process without threads: starts at once
    for number in range(1, num_rounds + 1):
        start, finish = context.Barrier(num_processes), context.Barrier(num_processes)
        reading, writing = os.pipe()
        processes = [
            context.Process(target=compete, args=(folder, number % 2 == 0, start, finish, writing))
            for _ in range(num_processes)
        ]
        for process in processes:
            process.start()
        os.close(writing)
        with os.fdopen(reading) as answers:
            print(json.dumps([json.loads(line) for line in answers]), flush=True)
        for process in processes:
            process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
