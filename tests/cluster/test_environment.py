"""Ranks from torchrun's and Slurm's variables."""

import pytest

from tolktrain.cluster.environment import ProcessEnvironment, alone, first_host, refuse_shell_of_job
from tolktrain.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


def test_a_process_of_its_own() -> None:
    assert ProcessEnvironment.detect({}) == ProcessEnvironment("single", 0, 1, 0, 1, "", 0)


def test_torchrun() -> None:
    assert ProcessEnvironment.detect(TORCHRUN) == ProcessEnvironment("torchrun", 5, 8, 1, 4, "node0", 29400)


def test_a_slurm_step() -> None:
    assert ProcessEnvironment.detect(SLURM) == ProcessEnvironment(
        "slurm", 5, 8, 1, 4, "gpu07", 10_000 + 123456 % 20_000
    )


def test_the_batch_shell_of_a_slurm_job_is_no_rank() -> None:
    batch_shell = {name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")}
    assert ProcessEnvironment.detect(batch_shell).launcher == "single"


def test_torchrun_inside_slurm_counts() -> None:
    assert ProcessEnvironment.detect({**SLURM, **TORCHRUN}).launcher == "torchrun"


def test_the_launch_script_may_choose_the_meeting_point() -> None:
    found = ProcessEnvironment.detect({**SLURM, "MASTER_ADDR": "gpu08", "MASTER_PORT": "15000"})
    assert (found.master_address, found.master_port) == ("gpu08", 15000)


@pytest.mark.parametrize(
    ("tasks", "node", "expected"), [("2(x3),1", "2", 2), ("2(x3),1", "3", 1), ("4", "0", 4), ("3,5", "1", 5)]
)
def test_uneven_nodes(tasks: str, node: str, expected: int) -> None:
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node, "SLURM_LOCALID": "0"}
    assert ProcessEnvironment.detect(environ).local_world_size == expected


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-010,12],login", "gpu003"),
        ("login,gpu[1-2]", "login"),
        ("n1", "n1"),
        ("rack[1,3]-node", "rack1-node"),
        ("a-b-7", "a-b-7"),
        ("rack[0-1]n[0-3]", "rack0n0"),
        ("n[001-003,7]", "n001"),
        ("n[7,001-003].cluster,login", "n7.cluster"),
        ("r[2-3]c[0,4]n[08-12]-ib,x", "r2c0n08-ib"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**TORCHRUN, "RANK": "8"}, "torchrun says rank 8 of 8"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'; torchrun should have set a whole number"),
        ({"RANK": "0"}, "started by torchrun, but WORLD_SIZE is not set; start it with srun or torchrun"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "started by torchrun, but MASTER_ADDR is not set"),
        ({**SLURM, "SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1'; Slurm should have set a whole number"),
        ({**SLURM, "SLURM_STEP_NODELIST": "n[1-2"}, "node list 'n[1-2' cannot be read; set MASTER_ADDR"),
        ({**SLURM, "MASTER_PORT": "many"}, "MASTER_PORT is 'many'; set it to the number of a free port"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; set it to the number of a free port"),
        ({**SLURM, "SLURM_STEP_NODELIST": "[1-2]"}, "node list '[1-2]' cannot be read; set MASTER_ADDR"),
    ],
)
def test_environments_that_make_no_sense(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        ProcessEnvironment.detect(environ)
    assert message in str(caught.value)


def test_export_speaks_torchrun() -> None:
    environ: dict[str, str] = {}
    ProcessEnvironment.detect(SLURM).export(environ)
    again = ProcessEnvironment.detect(environ)
    assert (again.launcher, again.rank, again.world_size, again.local_rank) == ("torchrun", 5, 8, 1)
    ProcessEnvironment.detect({}).export(environ := {})
    assert environ == {}


def test_devices() -> None:
    environment = ProcessEnvironment.detect(TORCHRUN)
    assert environment.device_index(4) == 1
    assert environment.device_index(1) == 0, "a rank that sees one GPU has it, whatever its local rank"
    third = ProcessEnvironment.detect({**TORCHRUN, "LOCAL_RANK": "3"})
    with pytest.raises(UserError, match="local rank 3 has no GPU: 2 are visible for 4 processes"):
        third.device_index(2)


def test_alone_hides_the_launcher() -> None:
    environ = {**SLURM, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x", "HOME": "/root"}
    assert ProcessEnvironment.detect(alone(environ)).launcher == "single"
    assert alone(environ)["HOME"] == "/root"


SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    "environ",
    [
        SHELL,
        {**SHELL, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"},
    ],
    ids=["a shell", "an interactive step", "tasks per node"],
)
def test_the_shell_of_a_job_of_several_tasks_is_referred_to_srun(environ: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"Slurm job 7 has 8 tasks on 2 nodes; start all ranks with srun python -m"):
        refuse_shell_of_job(environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"},
        SLURM,
        {**SLURM, "SLURM_STEP_NUM_TASKS": "8"},
        {**SHELL, **SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {**SHELL, **TORCHRUN},
    ],
    ids=["no job", "a job of one task", "a task", "a task of a known step", "srun --ntasks=1", "torchrun"],
)
def test_other_processes_are_not(environ: dict[str, str]) -> None:
    refuse_shell_of_job(environ)
