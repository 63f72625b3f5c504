"""The limit of open files and sockets: raised to the hard limit, and an error if that is too low.

A Slurm job inherits the limit of the login node, commonly 1024. Most ranks need the same number at any size of the job;
only rank 0 is connected to all ranks.
"""

import os
import resource

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError

FEW = 256  # data, logs, pipes of loader processes, and connections to neighbouring ranks
_EACH_RANK = 2  # connections of rank 0 to each rank: the watchdog, and the gathering of checkpoint plans
_EACH_CLIENT = 2  # connections to the rendezvous if rank 0 holds it: the watchdog's and torch's


def needed_files(environment: ProcessEnvironment) -> int:
    """The least number of descriptors that this process needs, as one of several."""
    if environment.rank:
        return FEW
    return needed_files_of(environment.world_size, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")


def needed_files_of(world_size: int, serves: bool = True) -> int:
    """The least number of descriptors of rank 0, which may hold the rendezvous (`serves`)."""
    return FEW + world_size * (_EACH_RANK + serves * _EACH_CLIENT)


def raise_file_limit(environment: ProcessEnvironment) -> None:
    """Raise the limit of open files of this process and of processes that it starts to the hard limit.

    Raises UserError with the needed number if the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems refuse their own hard limit
            pass
    needed = needed_files(environment) if environment.world_size > 1 else 0
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UserError(
            f"rank {environment.rank} of {environment.world_size} needs {needed:,} open files and sockets, but may have"
            f" {soft:,}; raise the hard limit (ulimit -Hn {needed}, in Slurm LimitNOFILE of slurmd) and start again"
        )
