"""What each piece measures, in its own process. Every figure is a record in the results as soon as it is known.

What takes seconds to import is imported by the pieces that need it.
"""

import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tolktrain.benchmark.first_hour.pieces import KERNELS, MODELS
from tolktrain.benchmark.first_hour.results import Results
from tolktrain.cluster.accelerators import accelerator_of
from tolktrain.errors import UserError
from tolktrain.files.writing import replace_file
from tolktrain_kernels.bench.measure import Plan, copy_rate

REFERENCE_MICRO_BATCH = {"150m": 16, "400m": 8, "2b": 4}  # the reference implementation needs far more memory
_SMALL_GPU_GB = 100  # below it, the reference implementation takes half of that
_STEPS, _WARMUP = 10, 3
_LARGEST_ERROR = 1e-3  # of a product in float32, without TF32 about 1e-7


@dataclass(frozen=True)
class Context:
    """Where a piece writes, and what it is to measure."""

    piece: str
    results: Results
    folder: Path
    root: Path  # of the repository
    overrides: tuple[str, ...] = ()  # of the configurations of steps

    @property
    def add(self) -> Callable[..., None]:
        """Add a record of this piece: kind and values."""
        return lambda kind, **values: self.results.add(kind, self.piece, **values)


def _machine(context: Context) -> None:
    if not torch.cuda.is_available():
        context.add("device", type="cpu", name="CPU")
        return
    properties = torch.cuda.get_device_properties(0)
    context.add(
        "device",
        type="cuda",
        name=properties.name,
        memory_gib=properties.total_memory / 2**30,
        capability=f"{properties.major}.{properties.minor}",
        cuda=str(torch.version.cuda),
        cudnn=torch.backends.cudnn.version(),
    )
    # In float32 without TF32, whose rounding would hide a device that computes little.
    left, right = (torch.randn(512, 512) for _ in range(2))
    error = float(((left.cuda() @ right.cuda()).cpu() - left @ right).norm() / (left @ right).norm())
    context.add("health", relative_error=error, is_within=error < _LARGEST_ERROR)
    context.add("copy", bytes_per_second=copy_rate("cuda", quick=False))
    if not error < _LARGEST_ERROR:
        raise RuntimeError(f"the GPU computes wrong values: relative error {error:.1e} of a product in float32")


def _numerics(name: str, context: Context) -> None:
    found = importlib.import_module(f"tolktrain_kernels.bench.{name}").numerics("cuda")
    count = wrong = 0
    for case, tensor, ours, eager, is_within in found:
        context.add("numeric", case=case, tensor=tensor, ours=ours, eager=eager, is_within=is_within)
        count, wrong = count + 1, wrong + (not is_within)
    if wrong:
        raise RuntimeError(f"{wrong} of {count} errors are above their tolerance")


def _model(context: Context) -> None:
    _run_tests(context, "model/triton_smoltolk.py", "interop/triton_published.py")


def _kernel_tests(context: Context) -> None:
    names = sorted(path.name for path in (context.root / "tests/kernels").glob("triton_*.py"))
    _run_tests(context, *(f"kernels/{name}" for name in names))


def _run_tests(context: Context, *programs: str) -> None:
    """Run test programs with their own conftest alone: that of all tests needs packages for tests on CPUs."""
    import pytest

    class Recorder:
        """Adds a record for each test."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            """Called by pytest after each phase of a test."""
            if report.when == "call" or report.outcome != "passed":
                error = str(report.longrepr)[-500:] if report.failed else ""
                context.add("test", test=report.nodeid, outcome=report.outcome, seconds=report.duration, error=error)

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)
    failed = []
    for program in programs:
        path = context.root / "tests" / program
        options = ["-q", "-p", "no:cacheprovider", "-c", str(context.root / "pyproject.toml")]
        code = pytest.main([*options, f"--confcutdir={path.parent}", str(path)], plugins=[Recorder()])
        failed += [program] if code else []
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def _kernel_rows(name: str, context: Context) -> None:
    module = importlib.import_module(f"tolktrain_kernels.bench.{name}")
    rate = copy_rate("cuda", quick=False)
    context.add("copy", bytes_per_second=rate)
    rows = []
    for row in module.rows(Plan("cuda", quick=False, copy_rate=rate)):
        context.add("row", **asdict(row))
        rows.append(row)
    from tolktrain_kernels.bench.report import write_report

    facts = {"copy rate": f"{rate / 1e9:.1f} GB/s", "command": f"`{shlex.join(sys.argv)}`"}
    notes = {name: module.NOTE} if hasattr(module, "NOTE") else {}
    write_report(context.folder / "kernels" / name, facts, rows, [], [], notes)


def _step(model: str, context: Context) -> None:
    _bench(context, model, (), steps=_STEPS, warmup=_WARMUP)


def _accumulated(model: str, context: Context) -> None:
    _bench(context, model, (), steps=4, warmup=1, accumulation=8)


def _against(model: str, context: Context) -> None:
    size = REFERENCE_MICRO_BATCH[model]
    if torch.cuda.get_device_properties(0).total_memory < _SMALL_GPU_GB * 1e9:
        size //= 2
    against = ("published", "strongest")
    _bench(context, model, (f"train.micro_batch_size={size}",), steps=_STEPS, warmup=_WARMUP, against=against)


def _bench(context: Context, model: str, overrides: Sequence[str], **options: Any) -> None:
    """Time a step, with `Options` of `bench`; with half the micro batch if it does not fit into memory."""
    from tolktrain.config.load import load_config

    config = f"configs/bench/{'cpu' if model == 'cpu' else f'smoltolk-{model}'}.yaml"  # pieces work in the repository
    given = [*overrides, *context.overrides]
    try:
        _record_step(context, model, config, given, options)
    except UserError as error:
        size = load_config(config, given).train.micro_batch_size
        if "does not fit" not in str(error) or size < 2:
            raise
        context.add("note", text=str(error))
        _record_step(context, model, config, [*given, f"train.micro_batch_size={size // 2}"], options)


def _record_step(context: Context, model: str, config: str, overrides: list[str], options: Mapping[str, Any]) -> None:
    from tolktrain.benchmark.run import Options, bench

    chosen = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in options.items()}
    command = ["tolktrain", "bench", config, *(f"--{name}={value}" for name, value in chosen.items()), *overrides]
    given = Options(**options, output=context.folder / context.piece)
    result = json.loads(bench(config, overrides, given, command).read_text())
    shown = ("stage", "precision", "micro_batch_size", "accumulation", "sequence_length", "tokens_per_step")
    for provider in result["providers"]:
        context.add(
            "step",
            model=model,
            config=config,
            overrides=overrides,
            kernels=result["facts"]["kernels"],
            **{name: result[name] for name in shown},
            model_flops=result["flops"]["total"],
            provider=provider.pop("name"),
            **{name: value for name, value in provider.items() if name not in ("what", "overrides")},
        )


def _count(model: str, context: Context) -> None:
    from tolktrain.benchmark.run import Options, bench

    config, folder = f"configs/bench/smoltolk-{model}.yaml", context.folder / context.piece
    options = Options(steps=5, warmup=2, count=True, output=folder)
    command = ["tolktrain", "bench", config, "--steps=5", "--warmup=2", "--count", *context.overrides]
    bench(config, context.overrides, options, command)
    counted = json.loads((folder / f"count-smoltolk-{model}.json").read_text())
    context.add("count", model=model, **counted["summary"], exact_launches=counted["exact_launches"])


def _plan(context: Context) -> None:
    from tolktrain.benchmark.first_hour.predictions import predictions

    steps = [record for record in context.results.read() if record["kind"] == "step"]
    mine = [step for step in steps if step["provider"] == "ours" and step["model"] in MODELS]
    kind = accelerator_of(torch.cuda.get_device_name(0))
    if kind is None:
        raise RuntimeError(f"{torch.cuda.get_device_name(0)} is no device that plan knows")
    for step in mine:
        context.add("prediction", **predictions(step, kind))
    if not mine:
        raise RuntimeError("no step has been measured")


def _attention(context: Context) -> None:
    from tolktrain_kernels.bench.rates import attention_rates, segment_rates

    plan = Plan("cuda", quick=False, copy_rate=1.0)
    plan = replace(plan, repeat_seconds=0.2)
    for rates in (attention_rates, segment_rates):
        for rate in rates(plan):
            context.add("rate", **asdict(rate), flops_per_second=rate.flops_per_second)


def _products(context: Context) -> None:
    from tolktrain.benchmark.first_hour.predictions import calibration
    from tolktrain_kernels.bench.rates import product_rates

    for rate in product_rates(replace(Plan("cuda", quick=False, copy_rate=1.0), repeat_seconds=0.2)):
        context.add("rate", **asdict(rate), flops_per_second=rate.flops_per_second)
    kind = accelerator_of(torch.cuda.get_device_name(0))
    if kind is not None:
        values = calibration(context.results.read(), kind)
        replace_file(context.folder / "calibration.json", json.dumps(values, indent=2) + "\n")


def _tune(context: Context) -> None:
    from tolktrain_kernels.bench.pooling import GPU_SHAPES
    from tolktrain_kernels.bench.tune import tune_pooling

    for line in tune_pooling("cuda", GPU_SHAPES):
        context.add("setting", line=line)


def _kernels_on_cpu(context: Context) -> None:
    from tolktrain_kernels.bench.__main__ import main

    if main(["--output", str(context.folder / "kernels")]):
        raise RuntimeError("numerics are off, or a kernel spills: see the log")


def _step_on_cpu(context: Context) -> None:
    _bench(context, "cpu", (), against=("published",))


WORK: dict[str, Callable[[Context], None]] = {
    "machine": _machine,
    "model": _model,
    "plan": _plan,
    "attention": _attention,
    "products": _products,
    "kernel-tests": _kernel_tests,
    "tune": _tune,
    "kernels": _kernels_on_cpu,
    "step-cpu": _step_on_cpu,
    **{f"numerics-{name}": partial(_numerics, name) for name in KERNELS},
    **{name: partial(_kernel_rows, name) for name in KERNELS},
    **{f"step-{model}": partial(_step, model) for model in MODELS},
    **{f"count-{model}": partial(_count, model) for model in MODELS},
    **{f"accumulated-{model}": partial(_accumulated, model) for model in MODELS},
    **{f"against-{model}": partial(_against, model) for model in MODELS},
}


def work(context: Context) -> None:
    """Do what the piece consists of."""
    with suppress(KeyboardInterrupt):
        WORK[context.piece](context)
