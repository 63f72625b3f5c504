"""A process that has imported everything and forks trainings, so that killing one costs a second and not ten.

Reads one JSON object per line: {"arguments": [...], "environ": {...}, "log": path, "kill_at": n or null}. Answers with
the process id, and later with {"pid": n, "code": exit code, negative for a signal}.

With "kill_at", the training kills itself by SIGKILL just before its n-th change of a file below "watched": a renaming,
a removal, a new folder, or the opening of a file for writing.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


def preload() -> None:
    """Import what takes long, without starting threads."""
    import streaming  # noqa: F401
    import torch  # noqa: F401

    import tolktrain.train.run  # noqa: F401

    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
    import deepspeed.runtime.pipe.module  # noqa: F401


def die_before_change(number: int, watched: str) -> None:
    """Kill this process before its `number`-th change of a file below the folder `watched`."""
    lock = threading.Lock()
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        # Removing a tree names files by the descriptor of their folder.
        inside = event in ("os.remove", "os.rmdir") and arguments[1] >= 0
        if (event in CHANGES or writes) and (inside or str(arguments[0]).startswith(watched)):
            with lock:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def train(order: dict[str, Any]) -> int:
    """In the forked process."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environ"])
    if order["kill_at"] is not None:
        die_before_change(order["kill_at"], order["watched"])
    from tolktrain.cli import main

    return main(order["arguments"])


def reap(answer: threading.Lock) -> None:
    """Tell of every process that ends."""
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            threading.Event().wait(0.01)
            continue
        with answer:
            print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def serve() -> None:
    """Until the input ends."""
    preload()
    answer = threading.Lock()
    thread_started = False
    for line in sys.stdin:
        order = json.loads(line)
        with answer:
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    code = train(order)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            print(json.dumps({"pid": pid}), flush=True)
        if not thread_started:
            thread_started = True
            threading.Thread(target=reap, args=(answer,), daemon=True).start()


if __name__ == "__main__":
    serve()
