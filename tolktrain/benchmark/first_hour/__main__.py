"""`python -m tolktrain.benchmark.first_hour`, started by `launch/benchmark.sh`.

Measures what can be measured in the given minutes, the most valuable first, each piece in a process of its own. The
results are written as they are known: results.jsonl, and summary.md with the tables. A piece that fails or hangs does
not stop the others, and what does not fit into the time is named as not run. If the folder has results, pieces that are
done are not repeated.
"""

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NoReturn

from tolktrain.benchmark.first_hour.pieces import CPU_PIECES, GPU_PIECES, MACHINE, Piece
from tolktrain.benchmark.first_hour.process import run_process
from tolktrain.benchmark.first_hour.results import Results
from tolktrain.benchmark.first_hour.schedule import DONE, Outcome, run_pieces
from tolktrain.benchmark.first_hour.summary import summary
from tolktrain.benchmark.versions import versions
from tolktrain.cluster.signals import be_killed_with_parent
from tolktrain.files.given import path_argument

ROOT = Path(__file__).resolve().parents[3]  # of the repository: its configurations and tests are used
_MODULE = "tolktrain.benchmark.first_hour"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces; 0 if all that were run are done."""
    options = _parser().parse_args(arguments)
    root = ROOT if (ROOT / "configs/bench").is_dir() else Path.cwd()
    folder = (options.out or root / f"docs/benchmarks/{datetime.now(timezone.utc):%Y-%m-%d}-{_device_slug()}").resolve()
    results = Results(folder)
    if options.piece is not None:
        _do(options, results, folder, root)
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    end = time.monotonic() + 60 * options.minutes
    given = sys.argv[1:] if arguments is None else arguments
    command = ["bash", "launch/benchmark.sh", *given]
    results.add("facts", "", values=_facts(root, command))
    outcomes = _run(options, results, root, end)
    print(f"results: {folder}")
    return 0 if all(outcome.status == DONE for outcome in outcomes.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch/benchmark.sh", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--minutes", type=float, default=60.0, help="after which everything has ended (60)")
    parser.add_argument(
        "--out", type=path_argument, metavar="DIR", help="for the results (docs/benchmarks/<date>-<device>)"
    )
    names = ", ".join(piece.name for piece in (*GPU_PIECES, *CPU_PIECES))
    parser.add_argument("--only", metavar="NAMES", help=f"these pieces, by commas: {names}")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="estimates and limits of pieces times X: a slow host (1)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configurations of training steps")
    # How a piece is started.
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


def _do(options: argparse.Namespace, results: Results, folder: Path, root: Path) -> None:
    if options.parent is not None:
        be_killed_with_parent(options.parent)  # it would keep the GPU
    from tolktrain.benchmark.first_hour.measurements import Context, work  # imports torch

    work(Context(options.piece, results, folder, root, tuple(options.overrides)))


def _run(options: argparse.Namespace, results: Results, root: Path, end: float) -> dict[str, Outcome]:
    page = _Page(results)
    run = partial(_run_piece, options.overrides, results, root, page)

    def record(piece: Piece, outcome: Outcome) -> None:
        results.add(
            "outcome", piece.name, status=outcome.status, seconds=round(outcome.seconds, 1), error=outcome.error
        )
        page.write()
        print(f"{piece.name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)

    finished = {r["piece"] for r in results.read() if r["kind"] == "outcome" and r["status"] == DONE}
    outcomes = run_pieces([_scaled(MACHINE, options.scale)], run, record, end, time.monotonic)
    kinds = [record["type"] for record in results.read() if record["kind"] == "device"]
    pieces = CPU_PIECES if kinds[-1:] == ["cpu"] else GPU_PIECES
    if options.only is not None:
        wanted = [name.strip() for name in options.only.split(",")]
        unknown = [name for name in wanted if name not in {piece.name for piece in pieces}]
        if unknown:
            print(f"error: --only {', '.join(unknown)}: unknown; see --help", file=sys.stderr)
            sys.exit(2)
        pieces = tuple(piece for piece in pieces if piece.name in wanted)
    todo = [_scaled(piece, options.scale) for piece in pieces if piece.name not in finished]
    return outcomes | run_pieces(todo, run, record, end, time.monotonic)


def _scaled(piece: Piece, factor: float) -> Piece:
    return replace(piece, estimate=factor * piece.estimate, limit=factor * piece.limit)


def _run_piece(
    overrides: Sequence[str], results: Results, root: Path, page: "_Page", piece: Piece, limit: float
) -> Outcome:
    results.add("start", piece.name)
    print(f"== {piece.name}: {piece.what} (at most {limit:.0f} s)", flush=True)
    folder = results.path.parent
    log = folder / "logs" / f"{piece.name}.log"
    return run_process(piece_command(piece, folder, overrides), root, log, limit, page.follow)


def piece_command(piece: Piece, folder: Path, overrides: Sequence[str]) -> list[str]:
    """How a piece is started."""
    command = [sys.executable, "-m", _MODULE, "--piece", piece.name, "--parent", str(os.getpid())]
    return [*command, "--out", str(folder), *overrides]


class _Page:
    """summary.md, which follows the results."""

    def __init__(self, results: Results) -> None:
        self._results, self._path = results, results.path.with_name("summary.md")
        self._size, self._next = -1, 0.0

    def follow(self) -> None:
        """Write it again if there are new results, at most once a second."""
        if time.monotonic() >= self._next and self._results.size() != self._size:
            self.write()

    def write(self) -> None:
        """Write it, aside first: at any moment there is a whole page."""
        self._size, self._next = self._results.size(), time.monotonic() + 1
        aside = self._path.with_suffix(".tmp")
        aside.write_text(summary(self._results.read()))
        aside.replace(self._path)


def _facts(root: Path, command: Sequence[str]) -> dict[str, str]:
    """What is known without a GPU."""
    status = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD") or "unknown"
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": f"`{shlex.join(command)}`",
        "commit": commit + (", with changes" if status else ""),
        "driver": _nvidia_smi("driver_version") or "unknown",
        "versions": versions(),
        "host": f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores",
    }


def _device_slug() -> str:
    name = _nvidia_smi("name") or "cpu"
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _nvidia_smi(field: str) -> str:
    lines = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader").splitlines()
    return lines[0].strip() if lines else ""


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _terminate(*_: object) -> NoReturn:
    """So that the running piece is ended, too."""
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
