"""The file of results: one JSON object a line, on the disk as soon as it is known."""

import json
import math
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Results:
    """`results.jsonl` of a folder. Several processes may append; what a killed one leaves unfinished is not read."""

    def __init__(self, folder: Path) -> None:
        """Created if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"

    def add(self, kind: str, piece: str, **values: Any) -> None:
        """Append a record, which survives the end of this process. Numbers that are not finite become null."""
        now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        line = json.dumps(_finite({"kind": kind, "piece": piece, "time": now, **values}), allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if self._is_cut():
                line = "\n" + line
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def read(self) -> list[Record]:
        """All whole records, in order."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off when the process was killed
                continue
            if isinstance(record, dict) and "kind" in record:
                found.append(record)
        return found

    def size(self) -> int:
        """Of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def _is_cut(self) -> bool:
        size = self.size()
        if not size:
            return False
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
