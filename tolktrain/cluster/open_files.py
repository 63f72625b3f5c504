"""How many files and sockets a process may have open: raised as far as it goes, and refused when it cannot suffice.

A login node's limit, commonly 1024, comes along with a Slurm job. Most ranks need the same number at any size of the
job. Rank 0 alone is connected with all of them.
"""

import os
import resource

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError

FEW = 256  # data, logs, pipes of loader processes, and connections with the few ranks that one talks to
_EACH_RANK = 2  # with rank 0: the watch, and the gathering of what a checkpoint holds
_EACH_CLIENT = 2  # with the rendezvous, where rank 0 keeps it: the watch's and torch's


def needed_files(environment: ProcessEnvironment) -> int:
    """Descriptors that this process needs at least, as one of several."""
    if environment.rank:
        return FEW
    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return FEW + environment.world_size * (_EACH_RANK + serves * _EACH_CLIENT)


def raise_file_limit(environment: ProcessEnvironment) -> None:
    """Raise this process's limit of open files, and that of processes it starts, to what the system lets it have.

    Raises UserError with the number that is needed when that is too little.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems promise more than they give
            pass
    needed = needed_files(environment) if environment.world_size > 1 else 0
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UserError(
            f"rank {environment.rank} of {environment.world_size} needs {needed:,} open files and sockets, but may have"
            f" {soft:,}; raise the hard limit (ulimit -Hn {needed}, in Slurm LimitNOFILE of slurmd) and start again"
        )
