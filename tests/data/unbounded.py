"""What a stranger's data set may hold that has no end, read in a process of its own.

`python unbounded.py FOLDER [REMOTE]` reads all records, in a quarter of a gigabyte more than it begins with.
"""

import resource
import sys

from tolktrain.config.data import DatasetConfig
from tolktrain.config.errors import UserError
from tolktrain.data.folder import RecordFolder
from tolktrain.data.storage import Patience

if __name__ == "__main__":
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 28),) * 2)
    remote = sys.argv[2] if len(sys.argv) > 2 else None
    try:
        records = RecordFolder(DatasetConfig(path=sys.argv[1], remote=remote), patience=Patience(0, 2.0))
        print([record.id for record in records])
    except UserError as error:
        print("refused:", error)
