"""Which parts a machine does, and which GPU a process has."""

import pytest

from tolktrain.errors import UserError
from tolktrain.prepare.job.gpus import share_gpus
from tolktrain.prepare.job.pipeline import Task
from tolktrain.prepare.run import task_of


def array(number: int, tasks: list[int], step: int = 1) -> dict[str, str]:
    """Slurm's variables in a task of an array."""
    values = {"ID": number, "MIN": min(tasks), "MAX": max(tasks), "STEP": step, "COUNT": len(tasks)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_tasks() -> None:
    assert task_of(None, {}) == Task(0, 1)
    assert task_of("2/5", array(1, [0, 1])) == Task(2, 5)
    assert [task_of(None, array(i, [0, 1, 2])) for i in range(3)] == [Task(0, 3), Task(1, 3), Task(2, 3)]
    assert [task_of(None, array(i, [4, 7, 10], 3)) for i in (4, 7, 10)] == [Task(0, 3), Task(1, 3), Task(2, 3)]


@pytest.mark.parametrize("text", ["2", "a/b", "-1/2", "1/2/3"])
def test_a_misspelt_task(text: str) -> None:
    with pytest.raises(UserError, match="write it as number/total"):
        task_of(text, {})


def test_an_array_with_gaps() -> None:
    with pytest.raises(UserError, match=r"from 1 to 7 are not evenly numbered.*--array=0-N"):
        task_of(None, array(3, [1, 3, 7]))


def test_each_process_has_a_gpu_of_its_own() -> None:
    given = [{"CUDA_VISIBLE_DEVICES": "3, 5,GPU-7"} for _ in range(4)]
    for number, environ in enumerate(given):
        share_gpus(number, environ)
    assert [environ["CUDA_VISIBLE_DEVICES"] for environ in given] == ["3", "5", "GPU-7", "3"]
    none = {"CUDA_VISIBLE_DEVICES": ""}
    share_gpus(0, none)
    assert none == {"CUDA_VISIBLE_DEVICES": ""}
