"""The job secret, with which the watchdog's connections are authenticated.

The secret is never sent over the network: each side proves that it knows it, for two nonces drawn for the connection.
"""

import contextlib
import errno
import hmac
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.shared import is_own_folder

SECRET_VARIABLE = (
    "TOLKTRAIN_JOB_SECRET"  # set by launch/pretrain.sbatch; not on a command line, which all users can read
)
SECRET_FILE = "job-secret"

_MACHINES_FOLDER = Path("/tmp")
_SHORTEST = 16  # characters; an attacker who records a greeting can test guesses offline
_SECRET_BYTES = 32
_DIGEST = "sha256"
_TRIES = 100  # to read the file that another rank creates at the same time, on a file system with delays
_TRY_SECONDS = 0.1


def job_key(master_port: int, world_size: int, environ: Mapping[str, str] = os.environ) -> bytes:
    """The key that the ranks of one start of a job share.

    It is derived from the variable TOLKTRAIN_JOB_SECRET if a launcher has set it, else from a private file of the user
    that the first process creates: in the home folder, or in /tmp if there is no writable home folder.

    Raises:
        UserError: there is no secret, and no private file can hold one.
    """
    secret = environ.get(SECRET_VARIABLE, "")
    if secret and len(secret) < _SHORTEST:
        raise UserError(
            f"{SECRET_VARIABLE} has {len(secret)} characters; give all processes of the job the same random text of at"
            f" least {_SHORTEST}, as from: openssl rand -hex 32"
        )
    # Jobs of one user share the secret but not the key.
    start = [environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
    job = f"{master_port} {world_size} {' '.join(start)}"
    return hmac.digest((secret or _of_user(environ)).encode(), job.encode(), _DIGEST)


def session_keys(key: bytes, rank: int, hub_nonce: str, rank_nonce: str) -> tuple[bytes, bytes]:
    """The keys of one connection: for what the hub sends, and for what the rank sends."""
    session = f"{rank} {hub_nonce} {rank_nonce}".encode()
    return hmac.digest(key, b"hub " + session, _DIGEST), hmac.digest(key, b"rank " + session, _DIGEST)


def _of_user(environ: Mapping[str, str]) -> str:
    problems = []
    is_full = False
    for folder in _folders(environ):
        try:
            return _kept_in(folder)
        except OSError as error:
            problems.append(f"{folder / SECRET_FILE}: {error.strerror or error}")
            is_full = is_full or error.errno in (errno.ENOSPC, errno.EDQUOT)
    raise UserError(
        f"the ranks prove by a secret that they are of one job, and no file can hold it ({'; '.join(problems)}); set"
        f" {SECRET_VARIABLE} to the same random text for all processes of the job, as from: openssl rand -hex 32",
        by_machine=is_full,
    )


def _folders(environ: Mapping[str, str]) -> Iterator[Path]:
    home = environ.get("HOME", "")
    state = environ.get("XDG_STATE_HOME") or (f"{home}/.local/state" if home else "")
    if state.startswith("/"):
        yield Path(state) / "tolktrain"
    # Without a writable home folder, as in some containers: sufficient for the processes of one machine. Not TMPDIR,
    # which may differ between processes.
    yield _MACHINES_FOLDER / f"tolktrain-{os.geteuid()}"


def _kept_in(folder: Path) -> str:
    """The secret in `folder`; creates both if they do not exist. Raises OSError if they are not private."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_own_folder(folder):
        raise PermissionError("its folder belongs to somebody else, or others can write to it")
    path = folder / SECRET_FILE
    for _ in range(_TRIES):
        try:
            return _read(path)
        except FileNotFoundError:
            _make(path)
        time.sleep(_TRY_SECONDS)
    return _read(path)


def _make(path: Path) -> None:
    """Create the file atomically. If several ranks start at once, the first one's file is used by all."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent)  # mode 600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        os.unlink(aside)


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError("it is not a file that this user alone can read (chmod 600)")
        secret = file.read(2 * _SECRET_BYTES + 1)
    if len(secret) != 2 * _SECRET_BYTES or not secret.isalnum():
        raise OSError("its content is not a secret that was written here; remove it")
    return secret.decode("ascii")
