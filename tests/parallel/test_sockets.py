"""How many sockets a rank has does not grow with their number, and the limit of open files is seen to."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

import pytest
from ports import free_port
from warm import Warm

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.open_files import needed_files

SIZES = (4, 8, 12)
LOW = 64  # fewer files than any rank has open in the end
REFUSED = """
import resource
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.open_files import raise_file_limit
for rank, limit in ((0, 1024), (1, 1024), (1, 100)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 90), limit))
    try:
        raise_file_limit(ProcessEnvironment("slurm", rank, 512, 0, 8, "host", 1))
        print("enough:", *resource.getrlimit(resource.RLIMIT_NOFILE))
    except Exception as error:
        print(type(error).__name__, error)
"""

FIRST_CONTACT = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from tolktrain.parallel.layout import initialize
child = os.fork()
rank = 0 if child else 1
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
initialize(timeout=timedelta(seconds=300))
late = dist.new_group(backend="gloo", timeout=timedelta(seconds=300))
time.sleep(5 * rank)
number = torch.ones(1)
dist.all_reduce(number, group=late)
os.write(1, f"together: {number.item()}\\n".encode())  # at once: the other rank writes there too
if rank == 0:
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def counts(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, int]]]:
    """What each rank has open, by layout. They start with a soft limit that is too low, as a job may."""
    folder, script = tmp_path_factory.mktemp("sockets"), Path(__file__).parent / "socket_ranks.py"
    layouts = [*(f"{size}x1x1" for size in SIZES), "8x2x2"]
    done = warm.run(script, str(LOW), folder, *layouts, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        layout: [
            json.loads((folder / layout / f"rank-{rank}.json").read_text()) for rank in range(int(layout.split("x")[0]))
        ]
        for layout in layouts
    }


@pytest.mark.slow
def test_sockets_do_not_grow_with_the_number_of_ranks(
    counts: dict[str, list[dict[str, int]]], growth_exponent: Callable[[Mapping[int, float]], float]
) -> None:
    """But for rank 0, which all are connected with. All groups connected at once would be 45, 77 and 109."""
    sockets = [rank["sockets"] for size in SIZES for rank in counts[f"{size}x1x1"][1:]]
    assert max(sockets) - min(sockets) <= 6, sockets
    files = {size: mean(rank["files"] for rank in counts[f"{size}x1x1"][1:]) for size in SIZES}
    assert growth_exponent(files) < 0.1, files


@pytest.mark.slow
def test_every_rank_needs_no_more_than_is_demanded(counts: dict[str, list[dict[str, int]]]) -> None:
    """And what rank 0 needs for each further rank is what it is demanded."""
    for layout, ranks in counts.items():
        assert all(LOW < rank["files"] <= rank["needed"] for rank in ranks), (layout, ranks)
    first, last = (counts[f"{size}x1x1"][0] for size in (SIZES[0], SIZES[-1]))
    per_rank = (last["files"] - first["files"]) / (SIZES[-1] - SIZES[0])
    assert per_rank == pytest.approx((last["needed"] - first["needed"]) / (SIZES[-1] - SIZES[0]), abs=1)


def test_a_limit_that_cannot_suffice_is_refused_with_the_number() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("UserError rank 0 of 512 needs 2,304 open files and sockets, but may have 1,024; raise")
    assert lines[1] == "enough: 1024 1024"
    assert lines[2].startswith("UserError rank 1 of 512 needs 256 open files and sockets, but may have 100")


def test_torchruns_agent_keeps_the_rendezvous_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ProcessEnvironment("torchrun", 0, 1000, 0, 8, "host", 1)
    alone = needed_files(first)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert alone - needed_files(first) == 2000


@pytest.mark.slow
def test_a_rank_that_is_late_for_the_first_contact_is_waited_for(warm: Warm) -> None:
    """The connection is made then. A dead one may not be noticed here: that is what the watch is for."""
    done = warm.run("-c", FIRST_CONTACT, str(free_port()))
    assert done.stdout.splitlines() == ["together: 2.0"] * 2, done.stderr[-3000:]
