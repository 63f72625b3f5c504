"""The identity of a process, from which a process on another node can decide whether it has ended."""

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

_NO_NAMES = ("", "localhost", "localhost.localdomain")  # names that many machines have


@dataclass(frozen=True)
class ProcessIdentity:
    """A process and its job. Text is empty if it is unknown."""

    host: str
    boot_id: str  # of this start of the machine's kernel
    pid_namespace: str
    pid: int
    start_ticks: int  # since boot; process numbers are reused, the pair of number and start is not
    cluster: str
    job_id: str  # Slurm's
    restart_count: int  # how often Slurm has requeued the job
    user: str

    @classmethod
    def mine(cls, environ: Mapping[str, str] = os.environ) -> "ProcessIdentity":
        """This process, with the job that `environ` describes."""
        _, start_ticks = _state_and_start(os.getpid())
        restarts = environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(),
            boot_id=_text(Path("/proc/sys/kernel/random/boot_id")),
            pid_namespace=_namespace(),
            pid=os.getpid(),
            start_ticks=start_ticks,
            cluster=environ.get("SLURM_CLUSTER_NAME", ""),
            job_id=environ.get("SLURM_JOB_ID", ""),
            restart_count=int(restarts) if restarts.isdecimal() else 0,
            user=_user(),
        )

    @classmethod
    def from_dict(cls, content: Any) -> "ProcessIdentity | None":
        """The inverse of `to_dict`; None if `content` is anything else."""
        if not isinstance(content, dict):
            return None
        values: dict[str, Any] = {field.name: content.get(field.name) for field in fields(cls)}
        if any(type(values[field.name]) is not field.type for field in fields(cls)):
            return None
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def why_dead(self, observer: "ProcessIdentity") -> str | None:
        """Why this process has certainly ended, as seen by `observer`, which must be the caller; otherwise None.

        None does not mean that it is alive: a process on another node cannot be observed.
        """
        same_job = bool(self.job_id) and (self.cluster, self.job_id) == (observer.cluster, observer.job_id)
        if same_job and self.restart_count < observer.restart_count:
            return "Slurm has requeued its job"
        if self.host != observer.host or self.host in _NO_NAMES or not (self.boot_id and observer.boot_id):
            return None
        if self.boot_id != observer.boot_id:
            return "its node was restarted"
        if self.pid_namespace and self.pid_namespace == observer.pid_namespace and self._has_ended():
            return "it has ended"
        return None

    def describe(self) -> str:
        """For a message: "job 123 on node7, process 4711, user x", or "process 4711 on node7, user x"."""
        host = self.host or "an unknown node"
        if self.job_id:
            return f"job {self.job_id} on {host}, process {self.pid}, user {self.user}"
        return f"process {self.pid} on {host}, user {self.user}"

    def how_to_end(self) -> str:
        """The command that ends it."""
        return f"scancel {self.job_id}" if self.job_id else f"kill {self.pid} on {self.host}"

    def _has_ended(self) -> bool:
        """Whether the process has ended; it must be in the namespace of this one."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # of another user; /proc may hide it, but it is there
        state, start_ticks = _state_and_start(self.pid)
        # A zombie has ended. If the start differs, another process has the number.
        return state in ("Z", "X") or (start_ticks > 0 and start_ticks != self.start_ticks)


def _state_and_start(pid: int) -> tuple[str, int]:
    """State letter and start in ticks since boot; empty and 0 if /proc has no entry."""
    # The name in parentheses may itself hold blanks and parentheses.
    parts = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (parts[0], int(parts[19])) if len(parts) > 19 else ("", 0)


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may not know the number that it runs as
        return str(os.getuid())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
