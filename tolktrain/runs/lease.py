"""Who may write a run's folder: a lease with a fencing token, in files of the folder itself.

```
lease/
  00000006.json      an earlier owner
  00000007.json      the owner: the highest number owns the run
```
Numbers are never used again. Taking the lease creates the next number by an operation that either makes the name or
fails because it exists, decided by the file server (`link`, or `open` with O_EXCL, both atomic on NFS from version 3
on, and on Lustre). So one of several starters gets a number. No file locks, which network file systems know badly or
not at all, and no comparison of clocks of different nodes.

The owner writes a growing counter into its file. A starter that cannot know whether the owner lives watches the
counter by its own clock: if it stands still for `lease_seconds`, the starter takes the next number.

What is guaranteed, and what is not:

- Two processes never have the same token, and later tokens are higher.
- `check` sees every token that was created before it was called. It changes the folder first, because an NFS client
  may show an old listing for up to a minute unless it has itself changed the folder.
- An owner that was stopped, or cut off from the file server, for longer than `lease_seconds` may be overtaken while it
  lives. Its next `check` raises. Between a `check` and what follows it nothing holds an overtaken process back;
  therefore unfinished files carry the token in their names, and a new owner removes those of other tokens: what the
  late process then tries to rename does not exist.
- A starter may find an owner dead that is only slow (`lease_seconds` without renewal). The old one is then fenced off;
  the files stay sound.
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
# A starter with an old listing must meet an existing file when it tries a number that was used.
_NUMBERS_KEPT = 16
_FILE_BYTES = 2048  # of every lease file, so that renewing writes in place and needs no space on a full disk
_ATTEMPTS, _ATTEMPT_SECONDS = 1000, 0.01
_NAME = re.compile(r"(\d{8,})\.json")
_ASIDE = ".tmp-"
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class LostLeaseError(UserError):
    """Another training has taken the run over; this process must not write to its folder any more."""


@dataclass(frozen=True)
class _Found:
    """A lease file as it was read. Without an owner where it is empty or damaged."""

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
    """The right to write a run's folder, renewed by a thread. Rank 0 holds it for all ranks.

    A context manager: releases at the end. In a forked child it neither renews nor releases.
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
        """Take the lease of the run in the existing folder `run_dir`, waiting up to `lease_seconds` for a dead owner.

        `report` gets a line for the terminal when it has to wait. A refused start changes nothing.

        Raises:
            UserError: another training of this run is going on; names it.
            OSError: the folder cannot be read or written.
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
        """Why the lease was lost, if the renewing thread has noticed. Costs nothing; `check` is what counts."""
        return self._lost

    def check(self) -> None:
        """Raise LostLeaseError if another process has taken the lease, as the file server says now.

        Raises OSError when that cannot be found out.
        """
        if self._lost is None:
            self._lost = self._why_lost()
        if self._lost is not None:
            raise LostLeaseError(self._lost)

    def stop(self) -> None:
        """Stop renewing, without giving the lease to others; for whoever removes the folder."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)  # it may hang in a file system that does not answer

    def release(self) -> None:
        """Let another training have the run at once. Again, after a loss, or in a forked child: no effect."""
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
        """Nothing renews it any more: another start would take this training for dead, and write beside it."""
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
        # Without an id: damaged, or created on a full disk and not written yet. The next renewal mends it.
        if found is None or found.id not in (self._content["id"], None):
            return f"{self._path} was removed or replaced; {_MUST_NOT_WRITE}"
        return None

    def _write(self, *, released: bool) -> None:
        """Write in place: that needs no space, and cannot bring back a file that was removed."""
        self._counter += 1
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _encoded(self._content, self._counter, released), 0)
        finally:
            os.close(descriptor)  # which sends it to the server


_MUST_NOT_WRITE = "this process must not write to it and ends; start again when the other one has ended"


class _Starter:
    """Takes a lease, or says why not."""

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
                # The listing that was the base may have been old, and its numbers tidied away since.
                _make_listing_fresh(self._folder)
                if max(_numbers(self._folder), default=0) == latest + 1:
                    return latest + 1
                _lease_path(self._folder, latest + 1).unlink(missing_ok=True)
            time.sleep(_ATTEMPT_SECONDS)
        raise OSError(errno.EAGAIN, "a lease could not be taken: its files change all the time", str(self._folder))

    def _may_follow(self, token: int) -> bool:
        """Whether the owner of `token` trains no more. False: look again, others have taken the lease meanwhile.

        Raises UserError if it does train.
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
            f"{self._folder.parent}: another training of this run is going on: {found.describe()};"
            f" {end} or choose another run.name"
        )


def _create(folder: Path, token: int, content: Mapping[str, Any]) -> bool:
    """Create the lease file of `token` if nobody has; whether this process did."""
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
        # A server whose answer was lost is asked again by the client, and then says that the name exists: it is ours.
        found = _read(folder, token)
        return found is not None and found.id == content["id"]
    except FileNotFoundError:
        return False  # a new owner has tidied, or the folder was discarded
    except OSError as error:
        if error.errno not in _NO_LINKS + _NO_SPACE:
            raise
        return _create_in_place(path, encoded)
    return True


def _create_in_place(path: Path, encoded: bytes) -> bool:
    """The same without a second file, for file systems without links and full ones; may be seen empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.pwrite(descriptor, encoded, 0)
    except OSError as error:
        # What fills the disk may be an unfinished checkpoint, which only the owner of the lease may remove.
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
        if error.errno not in (errno.EINVAL, errno.EFBIG):  # no regular file, or much too large: nobody's lease
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
    """Change the folder: a client of a network file system then asks the server what is in it."""
    probe = folder / f"{_ASIDE}{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # on a full disk
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


def _tidy(folder: Path, token: int) -> None:
    """Remove lease files far below `token`, and what killed starters left. A living starter then tries again."""
    doomed = [_lease_path(folder, number) for number in _numbers(folder) if number <= token - _NUMBERS_KEPT]
    for path in (*doomed, *folder.glob(f"{_ASIDE}*")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _lease_path(folder: Path, token: int) -> Path:
    return folder / f"{token:08d}.json"
