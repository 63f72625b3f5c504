"""`tolktrain train` that says where its watchdog listens, and may continue listening when all ranks have come.

Usage: attacked_rank.py FILE_FOR_THE_PORT (closes|stays-open) CONFIG [key=value ...].
"""

import os
import sys
from pathlib import Path

from tolktrain import cli
from tolktrain.cluster.watch.listener import Listener
from tolktrain.cluster.watch.rendezvous import Rendezvous

PORT_FILE, WHEN_COMPLETE, *ARGUMENTS = sys.argv[1:]


def main() -> int:
    """Train."""
    publish = Rendezvous.publish

    def published(self: Rendezvous, port: int) -> None:
        publish(self, port)
        aside = Path(f"{PORT_FILE}.tmp")
        aside.write_text(str(port))
        os.replace(aside, PORT_FILE)

    Rendezvous.publish = published
    if WHEN_COMPLETE == "stays-open":
        Listener.close = lambda self: None
    return cli.main(["train", *ARGUMENTS])


if __name__ == "__main__":
    sys.exit(main())
