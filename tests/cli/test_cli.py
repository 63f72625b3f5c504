"""Verbs, exit codes and messages of the command line."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ports import free_port

from tolktrain import cli
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import StopRequest
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError

HEAVY = ["torch", "deepspeed", "megatron", "streaming", "transformers", "numpy", "tolktrain_kernels"]
QUICKSTART = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")

Stub = Callable[..., list[Any]]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tolktrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Leaves the signal handlers as they were."""
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    """Replaces what the verbs do; gives the list of calls. The working folder is an empty one."""
    monkeypatch.chdir(tmp_path)

    def install(code: int = 0, error: BaseException | None = None, failing: str = "train") -> list[Any]:
        calls: list[Any] = []

        def train(config: Config, stop: StopRequest, progress: Progress | None) -> int:
            calls.append(("train", config, stop))
            if error is not None and failing == "train":
                raise error
            return code

        def verb(name: str, result: Any) -> Callable[[Path], Any]:
            def call(run_directory: Path, *_: Any) -> Any:
                calls.append((name, run_directory))
                if error is not None and failing == name:
                    raise error
                return result

            return call

        for name, function in {
            "train": train,
            "evaluate": verb("evaluate", {}),
            "generate": verb("generate", [Path("samples/0.wav")]),
            "report": verb("report", Path("report.html")),
        }.items():
            monkeypatch.setitem(sys.modules, f"tolktrain.{name}.run", SimpleNamespace(**{name: function}))
        return calls

    return install


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["config", QUICKSTART], ["config", "--schema"]])
def test_nothing_heavy_is_imported_for_a_quick_answer(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom tolktrain.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as leaving: assert leaving.code == 0\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_names_the_verbs_and_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("train", "evaluate", "generate", "report", "config", "exit codes", "1 the machine failed", "75"):
        assert word in done.stdout


def test_no_option_is_overwritten_by_what_every_verb_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option of the same name would be accepted and have no effect."""
    import argparse
    import importlib

    from tolktrain.cli.entry import VERBS
    from tolktrain.cli.verb import Verb

    verbs = {name: importlib.import_module(f"tolktrain.cli.{name}").VERB for name in VERBS}
    given: dict[str, Any] = {}

    def run(parsed: argparse.Namespace) -> int:
        given.update(vars(parsed))
        return 0

    monkeypatch.setattr("tolktrain.cli.config.VERB", Verb("nothing", lambda parser: None, run))
    assert cli.main(["config"]) == 0 and {"verb", "overrides"} <= set(given)
    for name, verb in verbs.items():
        parser = argparse.ArgumentParser(add_help=False)
        verb.add_arguments(parser)
        assert not {action.dest for action in parser._actions} & set(given), name


def test_bad_input_gives_2_and_one_message() -> None:
    done = run("train", "none.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.yaml does not exist; name a YAML file such as configs/quickstart.yaml\n"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train"], ["train", QUICKSTART, "--fast"]])
def test_wrong_usage_gives_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tolktrain")


@pytest.mark.slow
def test_ranks_say_who_they_are() -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    assert run("train", "none.yaml", env={**os.environ, **group}).stderr.startswith("rank 1: error: none.yaml")


def test_config_prints_what_was_resolved() -> None:
    done = run("config", QUICKSTART, "train.max_steps=3")
    resolved = yaml.safe_load(done.stdout)
    assert resolved["train"]["max_steps"] == 3
    assert resolved["model"]["speech"]["layer_pooling"] == "both"


def test_config_prints_the_schema() -> None:
    schema = json.loads(run("config", "--schema").stdout)
    assert schema["title"] == "Config"
    assert run("config").stderr == "error: name a configuration, such as configs/quickstart.yaml, or ask for --schema\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m tolktrain config --schema | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_train_hands_over_the_configuration_and_an_installed_stop(stub: Stub) -> None:
    calls = stub(code=75)
    assert cli.main(["train", QUICKSTART, "train.max_steps=3"]) == 75
    [(_, config, stop)] = calls
    assert config.train.max_steps == 3
    assert not stop.requested


def test_signals_are_caught_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """USR1 just before the import of torch must end the start with 75, not kill: an import hook sends it."""
    code = (
        "import os, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tolktrain.train': os.kill(os.getpid(), signal.SIGUSR1)\n"
        "        if name == 'tolktrain.train.run': raise SystemExit(55)\n"
        "        if name in ('torch', 'deepspeed', 'megatron'): raise SystemExit(55)\n"
        "sys.meta_path.insert(0, Hook())\n"
        "from tolktrain.cli import main\n"
        f"sys.exit(main(['train', {QUICKSTART!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 75


def test_after_training_come_evaluation_samples_and_report(stub: Stub) -> None:
    calls = stub()
    assert cli.main(["train", QUICKSTART]) == 0
    folder = Path("runs/quickstart")
    assert calls[1:] == [("evaluate", folder), ("generate", folder), ("report", folder)]


@pytest.mark.parametrize(
    ("code", "overrides", "environ"),
    [
        (75, [], {}),
        (0, ["evaluation.after_training=false"], {}),
        (0, [], {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}),
    ],
    ids=["preempted", "not wanted", "not rank 0"],
)
def test_when_nothing_follows_training(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, code: int, overrides: list[str], environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    calls = stub(code=code)
    assert cli.main(["train", QUICKSTART, *overrides]) == code
    assert [call[0] for call in calls] == ["train"]


def test_a_finished_run_is_not_measured_again(stub: Stub) -> None:
    calls = stub()
    folder = Path("runs/quickstart")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "samples").mkdir()
    latest, evaluation, samples = (
        folder / name for name in ("checkpoints/latest", "evaluation.json", "samples/samples.json")
    )
    settings = load_config(QUICKSTART).follow_up_settings()
    for file, time in [(latest, 100), (evaluation, 200), (samples, 50)]:
        file.write_text(json.dumps({"settings": settings}))
        os.utime(file, (time, time))
    assert cli.main(["train", QUICKSTART]) == 0
    assert [call[0] for call in calls[1:]] == ["generate", "report"]


@pytest.mark.parametrize(
    "override", ["evaluation.choices=3", "evaluation.heldout_sets=[heldout_voices]", "data.text_tokenizer=null"]
)
def test_a_finished_run_is_measured_again_with_other_settings(stub: Stub, override: str) -> None:
    calls = stub()
    settings = load_config(QUICKSTART).follow_up_settings()
    for name in ("checkpoints/latest", "evaluation.json", "samples/samples.json"):
        file = Path("runs/quickstart") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"settings": settings}))
    assert cli.main(["train", QUICKSTART]) == 0
    assert [call[0] for call in calls] == ["train", "report"]
    assert cli.main(["train", QUICKSTART, override]) == 0
    assert [call[0] for call in calls[2:]] == ["train", "evaluate", "generate", "report"]
    Path("runs/quickstart/evaluation.json").write_text("{cut o")
    assert cli.main(["train", QUICKSTART]) == 0
    assert [call[0] for call in calls[6:]] == ["train", "evaluate", "report"]


@pytest.mark.parametrize("verb", ["evaluate", "generate"])
def test_a_report_is_made_also_when_a_verb_before_it_fails(
    stub: Stub, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    calls = stub(error=UserError("the prompts are gone"), failing=verb)
    assert cli.main(["train", QUICKSTART]) == 2
    assert [call[0] for call in calls] == ["train", "evaluate", "generate", "report"]
    assert capsys.readouterr().err == f"error: {verb}: the prompts are gone\n"


@pytest.mark.parametrize("key", ["evaluation.prompts", "data.speech_tokenizer", "data.text_tokenizer"])
def test_what_follows_training_is_looked_for_before_it(
    stub: Stub, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    calls = stub()
    assert cli.main(["train", QUICKSTART, f"{key}=/nowhere"]) == 2
    assert f"{key} must name" in capsys.readouterr().err
    assert calls == []
    assert cli.main(["train", QUICKSTART, f"{key}=/nowhere", "evaluation.after_training=false"]) == 0


def test_rank_0_of_several_measures_in_a_process_of_its_own(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    commands: list[list[str]] = []

    def record(command: list[str], env: dict[str, str], check: bool) -> SimpleNamespace:
        assert not set(group) & set(env)
        commands.append(command[3:])
        return SimpleNamespace(returncode=2 if "generate" in command else 0)

    calls = stub()
    monkeypatch.setattr(subprocess, "run", record)
    assert cli.main(["train", QUICKSTART]) == 2
    assert [call[0] for call in calls] == ["train"]
    assert commands == [[verb, "runs/quickstart"] for verb in ("evaluate", "generate", "report")]


def test_errors_of_training(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub(error=UserError("data set x is empty"))
    assert cli.main(["train", QUICKSTART]) == 2
    assert capsys.readouterr().err == "error: data set x is empty\n"
    stub(error=KeyboardInterrupt())
    assert cli.main(["train", QUICKSTART]) == 130
    stub(error=RuntimeError("a defect keeps its traceback"))
    with pytest.raises(RuntimeError):
        cli.main(["train", QUICKSTART])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), "error: /data/x: Permission denied"),
        (
            OSError(28, "No space left on device"),
            "error: in runs/quickstart: No space left on device; free some, and run the same command again",
        ),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "error: a -> b: Invalid cross-device link"),
        (OSError("of several\nlines"), "error: in runs/quickstart: of several lines"),
        (BrokenPipeError(32, "Broken pipe"), "error: in runs/quickstart: Broken pipe"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_errors_of_the_machine_give_1_and_one_line(
    stub: Stub, capsys: pytest.CaptureFixture[str], verb: str, error: OSError, line: str
) -> None:
    folder = Path("runs/quickstart")
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    stub(error=error, failing=verb)
    assert cli.main([verb, QUICKSTART]) == 1
    assert capsys.readouterr().err == f"{line}\n"
    log = folder / "logs" / "rank-00000.log"
    log.write_text("before\n")
    assert cli.main([verb, QUICKSTART]) == 1
    assert capsys.readouterr().err == f"{line} (details in {log})\n"
    assert log.read_text().startswith("before\nTraceback")


def test_a_full_disk_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tolktrain", "config", QUICKSTART],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_a_full_output_is_named_whoever_prints(repository: Path, tmp_path: Path) -> None:
    """A library's long text is not in the buffer any more when it has failed."""
    command = [
        sys.executable,
        "-m",
        "tolktrain",
        "prepare",
        "--inspect",
        str(repository / "data/sample/heldout_voices"),
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "out")], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("verb", ["generate", "report"])
def test_what_is_still_in_the_buffer_counts(stub: Stub, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Python itself would say so at exit, with the code 120, and of a run that is to be requeued too."""
    folder = Path("runs/quickstart")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    stub()
    with capsys.disabled(), pytest.MonkeyPatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        print("a line before")
        patch.setattr(sys, "stderr", io.StringIO())
        assert cli.main([verb, QUICKSTART]) == 1
        assert sys.stderr.getvalue() == "error: standard output: No space left on device\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("stream", "code"), [("stdout", 75), ("stderr", 2)])
def test_a_full_output_does_not_change_other_codes(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, stream: str, code: int
) -> None:
    stub(code=code, error=UserError("data set x is empty") if code == 2 else None)
    codes = []
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it tries again
        monkeypatch.setattr(sys, stream, full)
        print("a line before")
        codes.append(cli.main(["train", QUICKSTART]))
    monkeypatch.undo()
    assert codes == [code]


def test_a_disk_that_refuses_is_no_bad_input(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub(error=UserError("the cache cannot be written", by_machine=True))
    assert cli.main(["train", QUICKSTART]) == 1
    assert capsys.readouterr().err == "error: the cache cannot be written\n"


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/data/runs/x/metrics.jsonl", "free some, and run"),
        ("/tmp/here/tolktrain-x/part", "free some, or let TMPDIR name a folder on another disk, and run"),
    ],
)
def test_a_full_disk_is_named_with_what_is_free(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str, advice: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/here")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_234_567_890))
    for code, reason in ((errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "Disk quota exceeded")):
        stub(error=OSError(code, reason, path))
        assert cli.main(["train", QUICKSTART]) == 1
        expected = f"error: {path}: {reason} (1,234.6 MB are free); {advice} the same command again\n"
        assert capsys.readouterr().err == expected


def test_a_pipe_that_breaks_elsewhere_is_no_success(stub: Stub, tmp_path: Path) -> None:
    code = (
        "import sys, types\nfrom tolktrain import cli\n"
        "def train(config, stop, progress):\n"
        "    sys.stdin.read()\n    print('step 1', flush=True)\n"
        "sys.modules['tolktrain.train.run'] = types.SimpleNamespace(train=train)\n"
        f"sys.exit(cli.main(['train', {QUICKSTART!r}]))\n"
    )
    options: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, **options)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == "error: in runs/quickstart: Broken pipe\n"
    assert process.wait(300) == 1
    process.stderr.close()


@pytest.mark.parametrize("verb", ["evaluate", "generate", "report"])
def test_verbs_take_a_configuration_or_a_run(stub: Stub, verb: str) -> None:
    calls = stub()
    folder = Path("elsewhere/trial")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    assert cli.main([verb, str(folder)]) == 0
    assert cli.main([verb, QUICKSTART, "run.dir=elsewhere", "run.name=trial"]) == 0
    assert calls == [(verb, folder), (verb, folder)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty is not a run directory: it has no config.yaml; name a run or a YAML file"),
        ([QUICKSTART], f"runs/quickstart holds no run yet; train it first: tolktrain train {QUICKSTART}"),
        (["trial", "evaluation.choices=3"], "'evaluation.choices=3' would have no effect: evaluate uses"),
        (
            [QUICKSTART, "run.dir=.", "run.name=trial", "train.max_steps=3"],
            "'train.max_steps=3' would have no effect: evaluate uses the configuration that the run was trained with,"
            " trial/config.yaml",
        ),
    ],
)
def test_runs_that_cannot_be_evaluated(
    stub: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    calls = stub()
    Path("empty").mkdir()
    Path("trial").mkdir()
    Path("trial/config.yaml").write_text("")
    assert cli.main(["evaluate", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert calls == []


EARLY = """
import os, signal, sys
def interrupt(*_):
    os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
    return None
class Finder:
    def find_spec(self, name, *_):
        if name == "tolktrain.cli.entry":
            interrupt()
sys.meta_path.insert(0, Finder())
sys.argv[0] = "tolktrain"
from tolktrain.cli import program
sys.exit(program())
"""


@pytest.mark.parametrize(("verb", "name"), [("prepare", "SIGTERM"), ("prepare", "SIGINT"), ("train", "SIGUSR1")])
def test_a_signal_while_the_first_modules_are_imported(tmp_path: Path, verb: str, name: str) -> None:
    """It is noted, and ends the verb before anything is written."""
    (tmp_path / "c.yaml").write_text("name: x\noutput: output\n")
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", EARLY, verb, "c.yaml", name],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.yaml", "temporary"]


LATE = """
import os, signal, sys
class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGTERM):
        kill(process, number)
kept = Late()
sys.argv = ["tolktrain", "prepare", "--schema"]
from tolktrain.cli import program
sys.exit(program())
"""


def test_a_signal_while_python_shuts_down() -> None:
    """The work is done, and the exit code says so. Python restores handlers before it takes modules down."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("verb", ["analyze", "compare", "demo", "export", "import", "report"])
def test_verbs_of_one_process(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of several processes, each of which would write the same files, a verb is refused before it begins."""
    names = {"analyze": 1, "compare": 2, "demo": 1, "export": 2, "import": 2, "report": 1}[verb]
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    variables |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main([verb, *[str(tmp_path / str(number)) for number in range(names)]]) == 2
    report = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert report.startswith(f"tolktrain {verb} runs in one process"), "what torchrun's report ends with"
    assert f"rank 1: error: tolktrain {verb} runs in one process, but 2 were started" in capsys.readouterr().err
