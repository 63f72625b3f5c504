"""Times, bandwidth and memory of one function, on a GPU or the CPU."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Plan:
    """The options of all benchmarks."""

    device: str  # "cuda" or "cpu"
    quick: bool  # small shapes, few repetitions
    copy_rate: float  # bytes per second, read and written, of a plain copy; measured in the same run
    repeat_seconds: float | None = None  # of one measurement, if not as `quick` says

    @property
    def seconds(self) -> float:
        """Time to spend on one measurement."""
        return self.repeat_seconds or (0.1 if self.quick else 1.0)


@dataclass(frozen=True)
class Row:
    """One measurement."""

    kernel: str
    provider: str  # the first provider of a kernel is what others are compared with
    mode: str  # "forward", "backward" or "both"
    shape: str
    dtype: str
    ms_20: float  # milliseconds, 20th percentile
    ms_50: float
    ms_80: float
    least_bytes: int  # that any implementation must move
    copy_share: float  # least_bytes / (ms_50 x copy rate)
    peak_bytes: int  # in tensors at the worst moment, above what was there before


def measure(
    plan: Plan, run: Callable[[], object], *, kernel: str, provider: str, mode: str, shape: str, dtype: str, least: int
) -> Row:
    """Time a function, and compare it with the least number of bytes that it must move."""
    peak = _peak_bytes_on_gpu(run) if plan.device == "cuda" else _peak_bytes_on_cpu(run)
    low, median, high = times(run, plan)
    share = least / (median / 1e3 * plan.copy_rate)
    return Row(kernel, provider, mode, shape, dtype, low, median, high, least, share, peak)


def times(run: Callable[[], object], plan: Plan) -> tuple[float, float, float]:
    """Milliseconds of a call that 20, 50 and 80 % of the calls stay below."""
    return _times_on_gpu(run, plan) if plan.device == "cuda" else _times_on_cpu(run, plan)


MODES = ("forward", "backward", "both")


def measure_modes(
    plan: Plan,
    forward: Callable[[], Sequence[torch.Tensor]],
    leaves: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    kernel: str,
    provider: str,
    shape: str,
    dtype: torch.dtype,
    least: Mapping[str, int],
) -> Iterator[Row]:
    """Three rows of one provider: the outputs of `forward`, the gradients of `leaves`, and both in turn.

    Args:
        gradients: of the outputs.
        least: the least number of bytes of each of `MODES`.
    """
    outputs = forward()

    def backward(outputs: Sequence[torch.Tensor], retain: bool) -> None:
        torch.autograd.grad(outputs, leaves, gradients, retain_graph=retain)

    runs: dict[str, Callable[[], object]] = {
        "forward": forward,
        "backward": lambda: backward(outputs, True),
        "both": lambda: backward(forward(), False),
    }
    name = str(dtype).removeprefix("torch.")
    for mode in MODES:
        yield measure(
            plan, runs[mode], kernel=kernel, provider=provider, mode=mode, shape=shape, dtype=name, least=least[mode]
        )


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function under torch.compile, compiled again for every set of shapes.

    PyTorch keeps few variants of a piece of code, over all its wrappers, and then stops compiling it.
    """
    made: dict[tuple[object, ...], Callable[..., Any]] = {}

    def run(*given: Any) -> Any:
        key = tuple(_signature(argument) for argument in given)
        if (key, torch.is_grad_enabled()) not in made:
            torch._dynamo.reset()
            made.clear()
            made[key, torch.is_grad_enabled()] = torch.compile(function, dynamic=False, backend=backend)
        return made[key, torch.is_grad_enabled()](*given)

    return run


def _signature(argument: object) -> object:
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype, argument.requires_grad
    return tuple(_signature(part) for part in argument) if isinstance(argument, (list, tuple)) else argument


def copy_rate(device: str, quick: bool) -> float:
    """Bytes per second of a plain copy of 1 GiB (CPU 256 MiB, quick 64 MiB), read and written bytes counted."""
    mebibytes = 64 if quick else 1024 if device == "cuda" else 256
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    milliseconds = times(lambda: target.copy_(source), Plan(device, quick, copy_rate=1.0))[1]
    return 2 * source.nbytes / (milliseconds / 1e3)


def _times_on_gpu(run: Callable[[], object], plan: Plan) -> tuple[float, float, float]:
    from triton.testing import do_bench

    milliseconds = round(1e3 * plan.seconds)
    low, median, high = do_bench(run, warmup=milliseconds // 4, rep=milliseconds, quantiles=[0.2, 0.5, 0.8])
    return low, median, high


def _times_on_cpu(run: Callable[[], object], plan: Plan) -> tuple[float, float, float]:
    run()
    times: list[float] = []
    end = time.perf_counter() + plan.seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return cuts[0], statistics.median(times), cuts[3]


def _peak_bytes_on_gpu(run: Callable[[], object]) -> int:
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_bytes_on_cpu(run: Callable[[], object]) -> int:
    """From the profiler's events of PyTorch's allocator, without work space that libraries allocate themselves."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))
