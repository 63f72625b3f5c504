"""`python -m tolktrain_kernels.bench`: all microbenchmarks, one folder of results.

On a GPU, every provider is timed and the kernels are checked natively. Without a GPU, the kernels are checked in
Triton's interpreter and compiled for absent GPUs, and the providers that run on the CPU are timed.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from tolktrain_kernels.bench.measure import Plan, copy_rate
from tolktrain_kernels.bench.pooling import GPU_SHAPES
from tolktrain_kernels.bench.report import Compilation, Numeric, write_report
from tolktrain_kernels.compilation import ARCHITECTURES, compile_for, missing_tool

# Each has rows(plan), builds() and numerics(device), as in `pooling`, and a NOTE where arithmetic is its bound.
MODULES = ("pooling", "adapter", "elementwise", "loss")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 0 unless a kernel's numbers are off or it spills on sm_90."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler complains of a GPU that is not there
    names = options.only or MODULES
    if options.numerics_only:
        print(json.dumps([entry for name in names for entry in _module(name).numerics("cpu")]))
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.candidates is not None:
        from tolktrain_kernels.bench.candidates import table

        for line in table(keys=tuple(options.candidates)):
            print(line, flush=True)
        return 0
    if options.tune:
        from tolktrain_kernels.bench.tune import tune_pooling
        from tolktrain_kernels.bench.tune_rows import tune_rows

        if device == "cpu":
            print("error: there is no GPU to tune for", file=sys.stderr)
            return 2
        for line in itertools.chain(tune_pooling(device, GPU_SHAPES), tune_rows(device)):
            print(line, flush=True)
        return 0
    if device == "cpu":
        print("No GPU: times are the CPU's; the kernels are checked in Triton's interpreter and compiled offline.")
    rate = copy_rate(device, options.quick)
    print(f"A plain copy moves {rate / 1e9:.1f} GB/s.", flush=True)
    rows = [row for name in names for row in _module(name).rows(Plan(device, options.quick, rate))]
    numerics = _numerics(device, names)
    compilations = _compilations(names, (90,) if options.quick else ARCHITECTURES) if device == "cpu" else []
    folder = options.output or Path("docs/benchmarks") / f"{datetime.now(timezone.utc):%Y-%m-%d}-{_slug(device)}"
    notes = {name: _module(name).NOTE for name in names if hasattr(_module(name), "NOTE")}
    for path in write_report(folder, _facts(device, rate, options.quick), rows, numerics, compilations, notes):
        print(path)
    failed = [f"{entry.case}, {entry.tensor}: error {entry.ours:.1e}" for entry in numerics if not entry.is_within]
    failed += [f"{e.kernel} spills on sm_90" for e in compilations if e.stack_bytes and e.architecture == "sm_90"]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tolktrain_kernels.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes, short measurements, sm_90 alone")
    parser.add_argument("--only", action="append", choices=MODULES, help="this kernel; may be repeated")
    parser.add_argument("--output", type=Path, help="folder of the results (docs/benchmarks/DATE-DEVICE)")
    parser.add_argument("--tune", action="store_true", help="try settings on this GPU and print the fastest, only")
    parser.add_argument(
        "--candidates",
        nargs="*",
        type=int,
        metavar="WIDTH",
        help="compile settings of norms, gated activation and loss for an H100 and list them, only",
    )
    # How the interpreter's process is started: it must be chosen before the kernels are imported.
    parser.add_argument("--numerics-only", action="store_true", help=argparse.SUPPRESS)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"tolktrain_kernels.bench.{name}")


def _numerics(device: str, names: Sequence[str]) -> list[Numeric]:
    if device == "cuda":
        return [Numeric(*entry) for name in names for entry in _module(name).numerics(device)]
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: numerics are left out.")
        return []
    command = [sys.executable, "-m", "tolktrain_kernels.bench", "--numerics-only"]
    command += [word for name in names for word in ("--only", name)]
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [Numeric(*entry) for entry in json.loads(output.splitlines()[-1])]


def _compilations(names: Sequence[str], architectures: Sequence[int]) -> list[Compilation]:
    missing = missing_tool()
    if missing:
        print(f"{missing} is missing: compilation is left out.")
        return []
    found = []
    for build in (build for name in names for build in _module(name).builds()):
        for architecture in architectures:
            usage = compile_for(build, architecture)
            place = f"sm_{architecture}"
            found.append(Compilation(build.name, place, usage.registers, usage.stack_bytes, usage.shared_bytes))
    return found


def _facts(device: str, rate: float, quick: bool) -> dict[str, str]:
    command = ["python", "-m", "tolktrain_kernels.bench", *(["--quick"] if quick else [])]
    facts = {"device": _device_name(device), "copy rate": f"{rate / 1e9:.1f} GB/s, read and written bytes counted"}
    if device == "cpu":
        facts["threads"] = str(torch.get_num_threads())
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if importlib.util.find_spec("triton") is not None:
        versions.append(f"triton {importlib.import_module('triton').__version__}")
    return {
        **facts,
        "versions": ", ".join(versions),
        "time": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": f"`{shlex.join(command)}`",
    }


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.machine()} (CPU)"


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", _device_name(device).lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
