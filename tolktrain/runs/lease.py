"""The lease that says which job may write the run directory, with a fencing token, in files of that directory.

```
lease/
  00000006.json      an earlier owner
  00000007.json      the owner: the highest number owns the run
```
Numbers are never reused. A starter takes the lease by creating the next number, with an operation of the file server
that fails if the name exists (`link`, or `open` with O_EXCL; both are atomic on NFS since version 3 and on Lustre). So
exactly one of several starters gets a number. File locks are not used, because network file systems support them
poorly, and clocks of different nodes are not compared.

The owner writes an increasing counter to its file. A starter that cannot determine whether the owner is alive observes
the counter by its own clock. If the counter does not change for `lease_seconds`, the starter takes the next number.

Guarantees and limits:

- Two processes never have the same token, and later tokens are higher.
- `check` sees every token that was created before it was called. It changes the folder first, because an NFS client may
  return an old listing for up to a minute unless it has changed the folder itself.
- If an owner is suspended, or disconnected from the file server, for longer than `lease_seconds`, another job may take
  the lease. The owner's next `check` raises. Writes between a `check` and the next one are not prevented. Therefore
  unfinished files have the token in their names, and a new owner removes those of other tokens, so that a late rename
  fails.
- A starter may take the lease of an owner that is only slow (`lease_seconds` without renewal). The old owner is then
  fenced off; the files stay valid.
"""

import contextlib
import errno
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from tolktrain.cluster.identity import ProcessIdentity
from tolktrain.cluster.threads import describe, guarded, log_failure
from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json, read_bytes
from tolktrain.runs.paths import RunPaths

LEASE_SECONDS = 30.0
_RENEWALS_PER_LEASE = 15
# A starter with an old listing that tries a used number must find that its file exists.
_NUMBERS_KEPT = 16
_FILE_BYTES = 2048  # size of every lease file; constant, so that renewing in place works on a full disk
_ATTEMPTS, _ATTEMPT_SECONDS = 1000, 0.01
_NAME = re.compile(r"(\d{8,})\.json")
_ASIDE = ".tmp-"
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class LostLeaseError(UserError):
    """Another training has taken over the run; this process must not write to the run directory any more."""


@dataclass(frozen=True)
class _Found:
    """The content of a lease file. It has no owner if it is empty or damaged."""

    token: int
    content: bytes
    id: str | None
    owner: ProcessIdentity | None
    since: str
    released: bool

    def describe(self) -> str:
        if self.owner is None:
            return "an unknown process (its lease file is damaged)"
        return self.owner.describe() + (f", since {self.since}" if self.since else "")


class Lease:
    """The right to write the run directory, renewed by a thread. Rank 0 holds it for all ranks.

    As a context manager, it is released at the end. In a forked child, it is neither renewed nor released.
    """

    def __init__(self, folder: Path, token: int, content: dict[str, Any], renew_seconds: float) -> None:
        self.token = token
        self._folder = folder
        self._content = content
        self._pid = os.getpid()
        self._renew_seconds = renew_seconds
        self._lost: str | None = None
        self._counter = 0
        self._released = False
        self._stop = threading.Event()
        self._thread = guarded("lease", self._renew_until_stopped, self._give_up)

    @classmethod
    def take(
        cls,
        run_dir: Path,
        *,
        report: Callable[[str], None],
        lease_seconds: float = LEASE_SECONDS,
        environ: Mapping[str, str] = os.environ,
    ) -> "Lease":
        """Take the lease of the existing run directory `run_dir`; wait up to `lease_seconds` for an owner to expire.

        `report` gets a line for the terminal if it has to wait. A refused start changes nothing.

        Raises:
            UserError: another training of this run is active; the message names it.
            OSError: the directory cannot be read or written.
        """
        folder = RunPaths(run_dir).lease
        content = {
            "id": uuid.uuid4().hex,
            "owner": ProcessIdentity.mine(environ).to_dict(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        token = _Starter(folder, content, lease_seconds, report).take()
        lease = cls(folder, token, content, lease_seconds / _RENEWALS_PER_LEASE)
        lease._thread.start()
        _tidy(folder, token)
        return lease

    @property
    def lost(self) -> str | None:
        """Why the lease was lost, if the renewing thread has noticed it. Only `check` is authoritative."""
        return self._lost

    def check(self) -> None:
        """Raise LostLeaseError if another process has taken the lease, according to the file server.

        Raises OSError if the file server cannot be asked.
        """
        if self._lost is None:
            self._lost = self._why_lost()
        if self._lost is not None:
            raise LostLeaseError(self._lost)

    def stop(self) -> None:
        """Stop renewing without releasing the lease; for removing the run directory."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)  # the file system may hang

    def release(self) -> None:
        """Release the run for other trainings. No effect if it was released or lost before, or in a forked child."""
        if os.getpid() != self._pid or self._released:
            return
        self._released = True
        self.stop()
        try:
            self.check()
            self._write(released=True)
        except LostLeaseError:
            pass
        except OSError as error:
            logger.warning("%s cannot be released (%s); the next start waits for it to expire", self._path, error)
        self._lost = self._lost or f"{self._folder.parent}: this process has released the run"

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def _path(self) -> Path:
        return _lease_path(self._folder, self.token)

    def _renew_until_stopped(self) -> None:
        failing = False
        while not self._stop.wait(self._renew_seconds):
            try:
                self._lost = self._lost or self._why_lost()
                if self._lost is not None:
                    logger.warning("%s", self._lost)
                    return
                self._write(released=False)
                failing = False
            except OSError as error:
                if not failing:
                    logger.warning("%s cannot be renewed (%s); trying again", self._path, error)
                failing = True

    def _give_up(self, error: BaseException) -> None:
        """Mark the lease as lost if the renewing thread fails: another start could take the expired lease."""
        self._lost = self._lost or (
            f"{self._path} is no longer renewed, since that failed ({describe(error)}); {_MUST_NOT_WRITE}"
        )
        log_failure("lease", error)

    def _why_lost(self) -> str | None:
        _make_listing_fresh(self._folder)
        latest = max(_numbers(self._folder), default=0)
        if latest > self.token:
            found = _read(self._folder, latest)
            who = "an unknown process" if found is None else found.describe()
            return f"{self._folder.parent}: another training has taken this run over: {who}; {_MUST_NOT_WRITE}"
        found = _read(self._folder, self.token)
        # Without an id, the file is damaged, or was created on a full disk. The next renewal repairs it.
        if found is None or found.id not in (self._content["id"], None):
            return f"{self._path} was removed or replaced; {_MUST_NOT_WRITE}"
        return None

    def _write(self, *, released: bool) -> None:
        """Write in place: this needs no disk space and cannot recreate a removed file."""
        self._counter += 1
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _encoded(self._content, self._counter, released), 0)
        finally:
            os.close(descriptor)  # sends the content to the file server


_MUST_NOT_WRITE = "this process must not write to it and ends; start again when the other one has ended"


class _Starter:
    """Takes a lease, or raises why it cannot."""

    def __init__(
        self, folder: Path, content: dict[str, Any], lease_seconds: float, report: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._content = content
        self._lease_seconds = lease_seconds
        self._poll_seconds = min(lease_seconds / _RENEWALS_PER_LEASE / 2, 1.0)
        self._report = report
        self._me = ProcessIdentity.from_dict(content["owner"])

    def take(self) -> int:
        for _ in range(_ATTEMPTS):
            latest = max(_numbers(self._folder), default=0)
            may_take = not latest or self._may_follow(latest)
            if may_take and _create(self._folder, latest + 1, self._content):
                # The listing may have been old, and its numbers may have been removed since.
                _make_listing_fresh(self._folder)
                if max(_numbers(self._folder), default=0) == latest + 1:
                    return latest + 1
                _lease_path(self._folder, latest + 1).unlink(missing_ok=True)
            time.sleep(_ATTEMPT_SECONDS)
        raise OSError(errno.EAGAIN, "a lease could not be taken: its files change all the time", str(self._folder))

    def _may_follow(self, token: int) -> bool:
        """Whether the owner of `token` has ended. False if another process has taken the lease meanwhile.

        Raises UserError if the owner is alive.
        """
        first = found = _read(self._folder, token)
        waits_since = time.monotonic()
        has_warned = False
        while True:
            expired = (
                time.monotonic() - waits_since > self._lease_seconds
            )  # before reading, so that a pause is no proof
            found = _read(self._folder, token)
            if found is None or first is None or max(_numbers(self._folder), default=0) != token:
                return False
            if found.released:
                return True
            reason = None if found.owner is None or self._me is None else found.owner.why_dead(self._me)
            if reason is None and found.content != first.content:
                self._refuse(found)
            if reason is None and expired:
                reason = f"it has not renewed its lease for {self._lease_seconds:g} seconds"
            if reason is not None:
                logger.warning("taking over %s from %s: %s", self._folder.parent, found.describe(), reason)
                return True
            if not has_warned:
                has_warned = True
                self._report(
                    f"waiting up to {self._lease_seconds:g} seconds to see whether another training of this run lives:"
                    f" {found.describe()}"
                )
            time.sleep(self._poll_seconds)

    def _refuse(self, found: _Found) -> None:
        end = "end it" if found.owner is None else f"end it ({found.owner.how_to_end()})"
        raise UserError(
            f"{self._folder.parent}: another training of this run is active: {found.describe()};"
            f" {end} or choose another run.name"
        )


def _create(folder: Path, token: int, content: Mapping[str, Any]) -> bool:
    """Create the lease file of `token` if it does not exist. Returns whether this process has created it."""
    path = _lease_path(folder, token)
    aside = folder / f"{_ASIDE}{content['id']}"
    encoded = _encoded(content, 0, released=False)
    folder.mkdir(exist_ok=True)
    try:
        try:
            _write_new(aside, encoded)
            os.link(aside, path)  # with its full content, or not at all
        finally:
            aside.unlink(missing_ok=True)
    except FileExistsError:
        # If a reply of the server was lost, the client repeats the request, which then fails because the file exists.
        found = _read(folder, token)
        return found is not None and found.id == content["id"]
    except FileNotFoundError:
        return False  # a new owner has removed the file, or the run directory was discarded
    except OSError as error:
        if error.errno not in _NO_LINKS + _NO_SPACE:
            raise
        return _create_in_place(path, encoded)
    return True


def _create_in_place(path: Path, encoded: bytes) -> bool:
    """The same without a second file, for file systems that are full or have no links; the file may be seen empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.pwrite(descriptor, encoded, 0)
    except OSError as error:
        # An unfinished checkpoint may fill the disk; only the owner of the lease may remove it.
        if error.errno not in _NO_SPACE:
            raise
    finally:
        os.close(descriptor)
    return True


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(content: Mapping[str, Any], counter: int, released: bool) -> bytes:
    return json.dumps({"renewals": counter, "released": released, **content}, indent=1).encode().ljust(_FILE_BYTES)


def _read(folder: Path, token: int) -> _Found | None:
    """The lease file of `token`, None if there is none."""
    try:
        content = read_bytes(_lease_path(folder, token))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EFBIG):  # not a regular file, or much too large: not a lease
            raise
        content = b""
    try:
        tree = parse_json(content)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        tree = {}
    owner = ProcessIdentity.from_dict(tree.get("owner"))
    since, released = str(tree.get("since") or ""), tree.get("released") is True
    return _Found(token, content, tree.get("id"), owner, since, released)


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def _make_listing_fresh(folder: Path) -> None:
    """Change the folder, so that a client of a network file system fetches its listing from the server."""
    probe = folder / f"{_ASIDE}{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # on a full disk
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


def _tidy(folder: Path, token: int) -> None:
    """Remove lease files far below `token`, and temporary files of starters. An active starter tries again."""
    doomed = [_lease_path(folder, number) for number in _numbers(folder) if number <= token - _NUMBERS_KEPT]
    for path in (*doomed, *folder.glob(f"{_ASIDE}*")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _lease_path(folder: Path, token: int) -> Path:
    return folder / f"{token:08d}.json"
