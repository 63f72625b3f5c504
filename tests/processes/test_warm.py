"""A process that is forked from a warm one is like one that was started as usual."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

LOOK = """
import json, locale, os, signal, sys, tempfile
print("written before the end")
import torch
shown = open("/proc/self/environ").read().rstrip(chr(0)).split(chr(0))
print(json.dumps({
    "arguments": sys.argv, "path": sys.path, "folder": os.getcwd(), "name": __name__, "file": __file__,
    "environ": dict(os.environ), "shown": sorted(shown), "temporary": tempfile.gettempdir(),
    "signals": {n.name: str(signal.getsignal(n)) for n in signal.valid_signals() if isinstance(n, signal.Signals)},
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "umask": os.umask(0), "nice": os.nice(0),
    "threads": len(os.listdir("/proc/self/task")), "descriptors": sorted(os.listdir("/proc/self/fd")),
    "input": sys.stdin.read(), "streams": [
        [s.encoding, s.errors, s.line_buffering, s.write_through] for s in (sys.stdout, sys.stderr)
    ],
    "torch threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized(),
    "groups": torch.distributed.is_initialized(), "locale": locale.setlocale(locale.LC_ALL),
    "leads a session": os.getsid(0) == os.getpid(), "importing": sys.flags.dont_write_bytecode,
}))
"""
ENDS = {
    "end": "print('words')",
    "code": "import sys; print('words'); sys.exit(3)",
    "message": "import sys; sys.exit('words')",
    "error": "raise ValueError('words')",
    "Ctrl-C": "import signal; print('words'); signal.raise_signal(signal.SIGINT)",
    "signal": "import os; print('words', flush=True); os.kill(os.getpid(), 15)",
    "at once": "import os; print('lost'); os._exit(5)",
    "at exit": "import atexit; atexit.register(print, 'last'); print('words'); raise SystemExit(None)",
    "finalizer": "import weakref, json; weakref.finalize(json, print, 'last'); print('words')",
    "thread": "import threading, time; threading.Thread(target=lambda: [time.sleep(0.1), print('late')]).start()",
    "pickles": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A, __name__)",
}


def fresh(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_looks_the_same_from_inside(warm: Warm, tmp_path: Path, unbuffered: str) -> None:
    script, place = tmp_path / "script.py", tmp_path / "place"
    script.write_text(LOOK)
    place.mkdir()
    environ = {**os.environ, "TMPDIR": str(place), "RANK": "3", "A NAME": "a = b\nc", "PYTHONUNBUFFERED": unbuffered}
    del environ["TOLKTRAIN_JOB_SECRET"]
    expected = fresh(script, "an argument", "", cwd=place, env=environ)
    process = warm.start(script, "an argument", "", folder=place, environ=environ)
    assert process.wait(300) == expected.returncode == 0, process.errors + expected.stderr
    found, wanted = (json.loads(output.splitlines()[1]) for output in (process.output, expected.stdout))
    path = wanted.pop("path")
    assert found.pop("path")[: len(path)] == path, "some imports append to it"
    assert found == wanted
    assert found["threads"] == 1 and not found["cuda"] and not found["groups"]


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_the_same(warm: Warm, tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDS[end])
    expected, process = fresh(script), warm.start(script)
    assert process.wait(300) == expected.returncode, process.errors
    assert process.output == expected.stdout
    assert process.errors.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_a_module_is_run_as_by_python(warm: Warm, repository: Path) -> None:
    command = ("-m", "tolktrain", "config", repository / "configs" / "quickstart.yaml", "train.max_steps=7")
    expected, process = fresh(*command), warm.start(*command)
    assert process.wait(300) == expected.returncode == 0
    assert process.output == expected.stdout != "" and process.errors == expected.stderr


def test_two_of_them_draw_different_numbers(warm: Warm, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy, random, torch; print(random.random(), numpy.random.random(), torch.rand(1).item())"
    )
    processes = [warm.start(script) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    drawn = [number for process in processes for number in process.output.split()]
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("name", ["TRITON_INTERPRET", "OMP_NUM_THREADS", "PYTHONPATH"])
def test_what_imports_have_read_cannot_be_chosen_later(warm: Warm, tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name}: read by imports, which were made with another value"):
        warm.start(tmp_path / "script.py", environ={**os.environ, name: "7"})


def test_what_our_own_code_sets_before_imports_is_no_other_value(warm: Warm) -> None:
    """Tests that train in their own process leave these for the processes that later ones start."""
    set_by_training = {"DS_ACCELERATOR": "cpu", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "TORCH_GLOO_LAZY_INIT": "1"}
    process = warm.start("-c", "import os; print(os.environ['DS_ACCELERATOR'])", environ=os.environ | set_by_training)
    assert process.wait(300) == 0 and process.output == "cpu\n"


STOPPED_BY_SIGNAL = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def launched(warm: Warm, tmp_path: Path) -> "subprocess.Popen[str]":
    """What a launcher has started in place of `python`: with SIGUSR1 ignored, as launch/pretrain.sbatch does."""
    script = tmp_path / "script.py"
    script.write_text(STOPPED_BY_SIGNAL)
    client = [sys.executable, "-I", "-S", str(Path(__file__).with_name("client.py"))]
    command = ["sh", "-c", 'trap "" USR1; exec "$@"', "sh", *client, str(warm.python_for_launchers().parent / "socket")]
    return subprocess.Popen([*command, str(script)], stdout=subprocess.PIPE, text=True)


def pid_of(launched: "subprocess.Popen[str]") -> int:
    """Of the process behind it, once it runs."""
    assert launched.stdout is not None
    return int(launched.stdout.readline())


def test_a_launcher_can_signal_it(launched: "subprocess.Popen[str]") -> None:
    pid = pid_of(launched)
    assert pid != launched.pid
    launched.send_signal(signal.SIGUSR1)
    assert launched.wait(300) == 75


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_sees_by_which_signal_it_has_ended(
    launched: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    pid = pid_of(launched)
    os.kill(pid, number)
    assert launched.wait(300) == -number


def test_it_ends_with_its_launcher(launched: "subprocess.Popen[str]") -> None:
    pid_of(launched)
    launched.kill()
    assert launched.stdout is not None and launched.stdout.read() == "", "the output is closed, so nobody lives on"
    assert launched.wait(300) == -signal.SIGKILL


@pytest.mark.slow
def test_everything_ends_with_the_warm_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STOPPED_BY_SIGNAL)
    with Warm() as own:
        process = own.start(script, log=tmp_path / "log")
        python = own.python_for_launchers() / "python"
        assert subprocess.run([python, "-c", "print(7)"], capture_output=True, text=True, check=True).stdout == "7\n"
    assert process.wait(300) == -signal.SIGKILL
    assert not python.exists()
