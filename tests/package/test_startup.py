"""What a process does not import before it needs it: every rank of every job would pay for it at its start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))  # for `tiny_run`

from tiny_run import tiny_tree, write_run

NO_COMPILER = "nothing is compiled"
NO_BUCKET = "there is no bucket"
NEVER = {
    "transformers": "no Hugging Face backbone or tokenizer is read",
    "huggingface_hub": "nothing is downloaded",
    "tokenizers": "text is tokenized already",
    "torchvision": "mosaicml-streaming's vision data sets are not used",
    "sklearn": "transformers wants it",
    "scipy": "transformers wants it",
    "pandas": "transformers wants it",
    "requests": NO_BUCKET,
    "boto3": NO_BUCKET,
    "botocore.session": NO_BUCKET,
    "google.cloud": NO_BUCKET,
    "azure": NO_BUCKET,
    "matplotlib": "reports draw, training does not",
    "wandb": "it is not configured",
    "soundfile": "speech is units already",
    "megatron.core.distributed": "DeepSpeed has this part",
    "megatron.core.inference.contexts": "nothing is served",
    "megatron.core.optimizer": "DeepSpeed has this part",
    "torch._dynamo": NO_COMPILER,
    "torch._inductor": NO_COMPILER,
    "torch.onnx": NO_COMPILER,
    "networkx": NO_COMPILER,
    "setuptools": NO_COMPILER,
    "torch.distributed.fsdp": "ZeRO has this part",
    "torch.distributed.tensor": "checkpoints use it, when they are written",
    "torch.distributed.checkpoint": "checkpoints use it, when they are written",
    "sympy": "the compiler and torch's checkpoints use it",
    "triton": "there is no GPU that would run its kernels",
}
NOT_YET = {"tensorboard": "nothing has been written", "google.protobuf": "TensorBoard uses it"}
# Of the trainer and what it alone imports.
NO_TRAINER = ("tolktrain.train", "deepspeed", "tensorboard", "torch._dynamo", "torch.distributed.checkpoint")


def found(names: list[str], among: list[str]) -> list[str]:
    """Those of the names that are among the modules."""
    return [name for name in names if name in set(among)]


@pytest.mark.slow
def test_training_imports_what_it_uses(repository: Path, tmp_path: Path) -> None:
    """For the quickstart's configuration, until the first batch is asked for, and until the first save."""
    program = Path(__file__).parent / "first_batch.py"
    overrides = [f"run.dir={tmp_path}", "train.max_steps=1", "data.num_workers=0"]
    command = [sys.executable, str(program), *overrides]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=repository, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    at_first_batch, at_save = json.loads(done.stdout.splitlines()[-1])
    assert {"torch", "deepspeed", "megatron.core", "streaming"} <= set(at_first_batch)
    assert {name: NEVER.get(name, NOT_YET.get(name)) for name in found([*NEVER, *NOT_YET], at_first_batch)} == {}
    assert {name: NEVER[name] for name in found([*NEVER], at_save)} == {}
    assert found([*NOT_YET], at_save) == [*NOT_YET]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "generate", "report", "checkpoints"])
def test_no_trainer_where_a_run_is_read(verb: str, repository: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, tiny_tree(tmp_path, repository))
    modules = tmp_path / "modules.json"
    code = (
        "import atexit, json, pathlib, runpy, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(modules)!r}).write_text(json.dumps(sorted(sys.modules))))\n"
        f"sys.argv = ['tolktrain', {verb!r}, {str(run)!r}]\n"
        "runpy.run_module('tolktrain', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    imported = json.loads(modules.read_text())
    assert "tolktrain.runs" in imported
    assert [name for name in imported if any(f"{name}.".startswith(f"{part}.") for part in NO_TRAINER)] == []


@pytest.mark.slow
def test_late_imports_draw_no_random_numbers() -> None:
    """Between two steps, they would change what comes after."""
    code = (
        "import random, numpy, torch\n"
        "def states(): return random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()\n"
        "before = states()\n"
        "import sympy, torch._dynamo, torch.distributed.checkpoint, transformers, boto3, matplotlib\n"
        "from tensorboard.summary.writer.record_writer import RecordWriter\n"
        "assert states() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
