"""What all tests share."""

import atexit
import gc
import importlib.util
import math
import multiprocessing.forkserver
import os
import signal
import statistics
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tolktrain.cluster.environment import alone

sys.path.insert(0, str(Path(__file__).parent / "object_storage"))
sys.path.insert(0, str(Path(__file__).parent / "disks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))  # for `sample_corpus`
sys.path.insert(0, str(Path(__file__).parent / "processes"))
if TYPE_CHECKING:
    from fault_proxy import FaultProxy
    from s3_server import S3Server
    from small_disk import MakeDisk
    from warm import Warm

# Tests must not depend on who started pytest, reach for the network, or spread tiny tensors over threads. Set here,
# before any test module imports torch or transformers.
_launched = dict(os.environ)
os.environ.clear()
os.environ.update(alone(_launched))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch's compiler: more threads are processes, each of which would import torch. And without vector instructions, code
# is the same for all processors, takes half the time to compile, and no programs that try out what the processor has.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that tests start compiles the whole package
os.environ["TOLKTRAIN_JOB_SECRET"] = "the secret of the jobs in the tests"  # else one would be kept in the home folder

if os.environ.get("TRITON_INTERPRET") == "1":  # a process of tests/kernels/test_in_triton.py
    sys.path.insert(0, str(Path(__file__).parent / "kernels"))
    from faster_interpreter import make_faster

    make_faster()

# A shell that starts pytest in the background lets it ignore Ctrl-C, and so would all its processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that tests start by this server need not each import what takes seconds. All tests of a session share it,
# and the first one that needs it would decide what it imports: so it imports what any of them wants.
_PRELOADED = (
    *("tolktrain.prepare.job.pipeline", "tolktrain.cluster.watch.watchdog", "torch.distributed"),
    *("tolktrain.data.loader", "boto3"),
)
_set_forkserver_preload = multiprocessing.forkserver.set_forkserver_preload
multiprocessing.forkserver.set_forkserver_preload = lambda names: _set_forkserver_preload(
    list(dict.fromkeys([*_PRELOADED, *names]))
)
multiprocessing.set_forkserver_preload([])

# A shared machine is slow at times; a property does not fail for that.
settings.register_profile("tolktrain", deadline=None)
settings.load_profile("tolktrain")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--transformers 5`: that version must be what the tests import."""
    parser.addoption("--transformers", metavar="MAJOR", help="fail unless this is transformers' major version")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Check the version; an installation that cannot be imported would otherwise be taken for none, and skipped."""
    expected = session.config.getoption("--transformers")
    if expected is not None:
        import transformers

        assert issubclass(transformers.HubertModel, transformers.PreTrainedModel)  # what they need is imported lazily
        if transformers.__version__.split(".")[0] != expected:
            raise pytest.UsageError(f"--transformers {expected}: {transformers.__file__} is {transformers.__version__}")


# Of the files with slow tests those that take minutes, longest first.
_LONGEST = (
    *("launch/test_survival.py", "train/test_layouts.py", "launch/test_zombie.py", "kernels/test_in_triton.py"),
    *("nullgpu/test_steps.py", "model/test_compile.py", "train/test_layout_runs.py", "prepare/test_pipeline.py"),
    *("train/test_resume.py", "soak/test_soak.py", "train/test_steering.py", "train/test_full_disk.py"),
)
_SLOW_SECONDS = 10.0  # from which on a test should be marked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that none of them runs on alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {name: place for place, name in enumerate(_LONGEST)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        return places.get("/".join(item.path.parts[-2:]), len(_LONGEST)), item.path not in slow

    items.sort(key=place)


_CPU_SECONDS = pytest.StashKey[float]()  # up to the end of the last file
_NUM_MODULES = pytest.StashKey[int]()  # that were imported when garbage was last collected here
_NUM_FILES_SHOWN = 10


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage meanwhile: importing all tests makes millions of objects and hardly any garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What importing the tests takes is not a cost of the first file."""
    from cpu_time import cpu_seconds

    _leave_out_of_collection(session.config)
    session.config.stash[_CPU_SECONDS] = cpu_seconds()


def _leave_out_of_collection(config: pytest.Config) -> None:
    """Take all that exists out of garbage collection.

    A training of some steps collects six times, each of which would walk through a million objects of imported
    libraries and cost as much as all its steps.
    """
    if _NUM_MODULES not in config.stash:
        # Python's end takes down all modules; else bindings to C++ would report leaks below the summary. No earlier,
        # because pytest collects garbage when it ends.
        atexit.register(gc.unfreeze)
    gc.collect()
    gc.freeze()
    config.stash[_NUM_MODULES] = len(sys.modules)


def pytest_runtest_setup() -> None:
    """Signals do what they do at the start of a process; commands that tests call here leave their handlers."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Note in the last report of a file what the file has cost, fixtures that it was the first to ask for included."""
    from cpu_time import cpu_seconds

    try:
        yield
    finally:
        if len(sys.modules) != item.config.stash[_NUM_MODULES]:  # most libraries are imported when they are used
            _leave_out_of_collection(item.config)
        if nextitem is None or nextitem.path != item.path:
            total = cpu_seconds()
            item.user_properties.append(("cpu_seconds", total - item.config.stash[_CPU_SECONDS]))
            item.config.stash[_CPU_SECONDS] = total


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the files that cost most, and the tests that should be marked as slow. None fails: a machine may be busy."""
    seconds: dict[str, float] = {}
    costs: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            if "slow" not in report.keywords:
                seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
            if report.when == "teardown":
                file = report.nodeid.partition("::")[0]
                costs[file] = costs.get(file, 0.0) + dict(report.user_properties).get("cpu_seconds", 0.0)
    if costs:
        terminalreporter.write_line(f"{sum(costs.values()):.0f} CPU seconds, of which")
    for name, cost in sorted(costs.items(), key=lambda entry: -entry[1])[:_NUM_FILES_SHOWN]:
        terminalreporter.write_line(f"{cost:7.1f} {name}")
    for name, total in sorted(seconds.items(), key=lambda entry: -entry[1]):
        if total > _SLOW_SECONDS:
            terminalreporter.write_line(f"not marked slow, but took {total:.0f} s: {name}")


@pytest.fixture(scope="session")
def growth_exponent() -> Callable[[Mapping[int, float]], float]:
    """Fits the exponent of a power law to counts by size: 1.0 for what grows as the size does, 0 for a constant."""

    def fit(counts: Mapping[int, float]) -> float:
        return statistics.linear_regression([math.log(n) for n in counts], [math.log(c) for c in counts.values()]).slope

    return fit


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def warm() -> "Iterator[Warm]":
    """Forks training processes, which then need not import anything."""
    from warm import Warm

    with Warm() as warm:
        yield warm


@pytest.fixture
def make_disk(tmp_path: Path) -> "Iterator[MakeDisk]":
    """Mounts a file system of so many KiB; the test is skipped where that is not permitted."""
    from small_disk import SmallDisk

    disks: list[SmallDisk] = []

    def make(kib: int) -> SmallDisk:
        disks.append(SmallDisk(tmp_path / f"disk-{len(disks)}", kib))
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """An S3 server over HTTP. `s3_server.environ` says how to reach it."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed")
    from s3_server import running_s3_server

    with running_s3_server(tmp_path_factory.mktemp("s3") / "server.log") as server:
        yield server


@pytest.fixture
def bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """Address (s3://NAME) of an empty bucket; the environment says how to reach it."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket()


@pytest.fixture(scope="session")
def _fault_proxy(s3_server: "S3Server") -> "Iterator[FaultProxy]":
    from fault_proxy import running_fault_proxy

    with running_fault_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(_fault_proxy: "FaultProxy", bucket: str, monkeypatch: pytest.MonkeyPatch) -> "FaultProxy":
    """A proxy that adds faults between the environment's S3 clients and the server."""
    _fault_proxy.clear()
    monkeypatch.setenv("S3_ENDPOINT_URL", _fault_proxy.url)
    return _fault_proxy
