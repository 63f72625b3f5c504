"""The rank of this process, from torchrun's or Slurm's environment variables."""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from tolktrain.errors import UserError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class ProcessEnvironment:
    """Rank and rendezvous of this process.

    `launcher` says who started it; a single process has rank 0 of 1 and no rendezvous (`master_address` is empty).
    """

    launcher: Literal["single", "torchrun", "slurm"]
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int

    @classmethod
    def detect(cls, environ: Mapping[str, str] = os.environ) -> "ProcessEnvironment":
        """Read torchrun's variables, else those of a Slurm step, else assume a single process.

        Raises UserError when a launcher's variables are incomplete or make no sense.
        """
        if "RANK" in environ or "WORLD_SIZE" in environ:
            return cls._from_torchrun(environ)
        # The batch shell has SLURM_PROCID and SLURM_NTASKS too; only inside a step are they this process's own.
        if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
            return cls._from_slurm(environ)
        return cls("single", 0, 1, 0, 1, "", 0)

    @classmethod
    def _from_torchrun(cls, environ: Mapping[str, str]) -> "ProcessEnvironment":
        number = {name: _integer(environ, name, "torchrun") for name in ("RANK", "WORLD_SIZE")}
        local_rank = _integer(environ, "LOCAL_RANK", "torchrun", default=number["RANK"])
        local_size = _integer(environ, "LOCAL_WORLD_SIZE", "torchrun", default=max(local_rank + 1, 1))
        port = _port(_text(environ, "MASTER_PORT", "torchrun"))
        address = _text(environ, "MASTER_ADDR", "torchrun")
        return cls("torchrun", number["RANK"], number["WORLD_SIZE"], local_rank, local_size, address, port)._checked()

    @classmethod
    def _from_slurm(cls, environ: Mapping[str, str]) -> "ProcessEnvironment":
        rank, size, local_rank = (
            _integer(environ, f"SLURM_{name}", "Slurm") for name in ("PROCID", "NTASKS", "LOCALID")
        )
        nodes = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST", "Slurm")
        tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or str(size)
        local_size = _tasks_on_node(tasks_per_node, int(environ.get("SLURM_NODEID", "0")))
        address = environ.get("MASTER_ADDR") or first_host(nodes)
        # One port per job, so that jobs on one node do not collide; below the range of Linux's ephemeral ports.
        port = _port(environ.get("MASTER_PORT") or str(10_000 + _integer(environ, "SLURM_JOB_ID", "Slurm") % 20_000))
        return cls("slurm", rank, size, local_rank, local_size, address, port)._checked()

    def _checked(self) -> "ProcessEnvironment":
        if not 0 <= self.rank < self.world_size or not 0 <= self.local_rank < self.local_world_size:
            raise UserError(
                f"{self.launcher} says rank {self.rank} of {self.world_size}, local rank {self.local_rank} of"
                f" {self.local_world_size}; a rank must be below its size. Start all processes with one launcher."
            )
        return self

    def export(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Set torchrun's variables, which torch.distributed and DeepSpeed read. A single process needs none."""
        if self.launcher != "single":
            values = (
                self.rank,
                self.world_size,
                self.local_rank,
                self.local_world_size,
                self.master_address,
                self.master_port,
            )
            environ.update({name: str(value) for name, value in zip(TORCHRUN_VARIABLES, values, strict=True)})

    def device_index(self, visible_devices: int) -> int:
        """Which visible GPU is this rank's. With `--gpus-per-task=1` every rank sees its own one as device 0."""
        if visible_devices == 1:
            return 0
        if self.local_rank >= visible_devices:
            raise UserError(
                f"local rank {self.local_rank} has no GPU: {visible_devices} are visible for {self.local_world_size}"
                " processes on this node; start one process per GPU"
            )
        return self.local_rank


def alone(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without the launchers' variables: a process started with it runs by itself."""
    hidden = {*TORCHRUN_VARIABLES, *SLURM_VARIABLES, "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"}
    return {
        name: value for name, value in environ.items() if name not in hidden and not name.startswith("TORCHELASTIC_")
    }


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: `gpu[003-010,12],login` gives gpu003, `rack[0-1]n[0-3]` gives rack0n0."""
    # Commas outside of brackets separate the names of hosts.
    host = re.sub(r"\[(\d+)[^\[\]]*\]", r"\1", nodes).split(",")[0]
    if nodes.startswith("[") or not re.fullmatch(r"[\w.-]+", host):
        raise UserError(f"Slurm's node list {nodes!r} cannot be read; set MASTER_ADDR to the first node's name")
    return host


def _tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks of node number `node`: `4(x2),3` means 4, 4, 3."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(repeat or 1)
    return counts[node] if node < len(counts) else max(counts, default=1)


def refuse_shell_of_job(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError if this process is not a task of its Slurm job, but runs in the shell of `salloc`, or of a batch
    script, of a job of several tasks or nodes: it would train alone, or wait for ranks that nobody has started."""
    if "RANK" in environ or "SLURM_JOB_ID" not in environ:
        return
    nodes = _count(environ, "SLURM_JOB_NUM_NODES") or _count(environ, "SLURM_NNODES") or 1
    tasks = _count(environ, "SLURM_NTASKS") or nodes * max(_count(environ, "SLURM_NTASKS_PER_NODE"), 1)
    # With LaunchParameters=use_interactive_step, the shell of salloc is a step of one task.
    own = _count(environ, "SLURM_STEP_NUM_TASKS") or tasks if "SLURM_STEP_ID" in environ else 1
    if tasks > own:
        raise UserError(
            f"this process was not started by srun, but its Slurm job {environ['SLURM_JOB_ID']} has {tasks} tasks on"
            f" {nodes} node{'s' * (nodes > 1)}; start all ranks with srun python -m tolktrain train ..., or a single"
            " one with srun --nodes=1 --ntasks=1 python -m tolktrain train ..."
        )


def _count(environ: Mapping[str, str], name: str) -> int:
    """A number of Slurm's, 0 if it is not given."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 1 << 16:
        raise UserError(f"MASTER_PORT is {text!r}; set it to the number of a free port, between 1024 and 65535")
    return int(text)


def _text(environ: Mapping[str, str], name: str, launcher: str) -> str:
    if not environ.get(name):
        raise UserError(
            f"this process was started by {launcher}, but {name} is not set; start it with srun or torchrun"
        )
    return environ[name]


def _integer(environ: Mapping[str, str], name: str, launcher: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    text = _text(environ, name, launcher)
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{name} is {text!r}; {launcher} should have set a whole number")
    return int(text)
