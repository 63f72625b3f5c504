"""A process that takes the lease of a run and obeys commands.

Usage: lease_holder.py FOLDER LEASE_SECONDS. Says "taken TOKEN" or "refused MESSAGE"; then, for each line of stdin:
"check" says "held" or "lost MESSAGE"; "fork" lets a forked child release and wait; "release" releases.
"""

import os
import sys
import time
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.runs.lease import Lease, LostLeaseError


def say(line: str) -> None:
    """To the test."""
    print(line.replace("\n", " "), flush=True)


def main(folder: Path, lease_seconds: float) -> None:
    """Obey until stdin ends; then leave without releasing."""
    try:
        lease = Lease.take(folder, report=lambda line: say(f"report {line}"), lease_seconds=lease_seconds)
    except UserError as error:
        say(f"refused {error}")
        return
    say(f"taken {lease.token}")
    for command in sys.stdin:
        if command == "check\n":
            try:
                lease.check()
                say("held")
            except LostLeaseError as error:
                say(f"lost {error}")
        elif command == "fork\n":
            child = os.fork()
            if not child:
                lease.release()
                time.sleep(2 * lease_seconds / 15)
                os._exit(0)
            os.waitpid(child, 0)
            say("forked")
        elif command == "release\n":
            lease.release()
            say("released")
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
