"""`tolktrain train` that kills itself by SIGKILL just before its n-th change of a file below a folder.

A change is a renaming, a removal, a new folder, or the opening of a file for writing.

Usage: mortal_rank.py N FOLDER train CONFIG [key=value ...]; it lives on if N is 0.
"""

import os
import signal
import sys
import threading
from typing import Any

from tolktrain import cli

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


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


def main() -> int:
    """Train."""
    number, watched, *arguments = sys.argv[1:]
    if int(number):
        die_before_change(int(number), watched)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
