"""`tune.jsonl`: one line for each trial that has ended, so that a search that is started again does not repeat it."""

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json
from tolktrain.files.writing import AppendedFile
from tolktrain.tune.setting import Outcome

_FIELDS = {field.name for field in dataclasses.fields(Outcome)}


class Journal:
    """The outcomes of trials by key. A key is a digest of everything that an outcome depends on."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one. A torn last line, of a killed search, is removed.

        Raises:
            UserError: a line before the last one is damaged, or another process has opened it.
        """
        self.path = path
        self._outcomes: dict[str, Outcome] = {}
        self._file = AppendedFile(path)
        self._lock = path.open("rb")
        self._take_lock()
        self._read()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another search writes to it; wait for its end, or set --output") from None
        except OSError:
            return  # a file system without locks

    def _read(self) -> None:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                entry = parse_json(line)
                key, outcome = entry["key"], _outcome(entry["outcome"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}: line {number} is no trial ({error}); remove the line, or the file to begin again"
                ) from None
            self._outcomes[str(key)] = outcome
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, key: str) -> Outcome | None:
        """The outcome of a trial that has ended; None if it has not."""
        return self._outcomes.get(key)

    def add(self, key: str, what: dict[str, Any], outcome: Outcome) -> None:
        """Append a trial; on disk when this returns. `what` describes it for readers."""
        line = {"key": key, **what, "outcome": dataclasses.asdict(outcome)}
        self._file.append(json.dumps(line, allow_nan=False) + "\n")
        self._file.sync()
        self._outcomes[key] = outcome

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._lock.close()


def _outcome(values: dict[str, Any]) -> Outcome:
    known = {name: value for name, value in values.items() if name in _FIELDS}
    return Outcome(**{**known, "seconds": tuple(float(second) for second in known.get("seconds", ()))})
