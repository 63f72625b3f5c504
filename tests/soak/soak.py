"""Kills trainings by SIGKILL at random instants, or fills their disk, and proves after each that nothing was lost.

Usage, from the root of the repository:
    python tests/soak/soak.py --kills 200 [--full-disks 20] [--seed 0] [--output FOLDER]

A small run (three stages, 40 steps, a checkpoint every three steps, two kept) is started, killed, started again, until
it is complete; then its metrics and its last checkpoint must equal those of a run that nobody disturbed, bit for bit.
Runs follow until enough kills are done. They differ in how checkpoints are written (in the background or not) and in
the number of ranks (of two, one is killed). Half of the kills come before a change of a file, counted from the start: a
renaming, a removal, a new folder or file, so that no gap between two of them is missed; the others at any time.

After each kill, without the project's own code: `latest` names a folder, every file of which has the size and SHA-256
of its manifest; no checkpoint that was once complete and newer than it is lost. After each start: training continues
from the latest checkpoint that was complete, and has lost at most one interval, and with writing in the background the
steps that were made meanwhile.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "train"))  # for `small_runs`
sys.path.insert(0, str(HERE.parent / "processes"))  # for `ports` and `warm`

from ports import free_port  # noqa: E402
from small_runs import read_metrics, write_config, write_sets  # noqa: E402
from warm import Warm, WarmProcess  # noqa: E402

from tolktrain.checkpoint.store import read_moments, read_parameters  # noqa: E402

INTERVAL = 3
STEPS = (10, 10, 20)
TOKENS_PER_STEP = 256
CHANGES_OF_A_STEP = 9  # of files, about; before one of those of a run it is killed
SECONDS_OF_A_STEP, SECONDS_OF_A_START = 0.05, 0.3
TIMEOUT = 600.0


@dataclass
class Findings:
    """What was seen."""

    kills: int = 0
    runs: int = 0
    during: collections.Counter[str] = field(default_factory=collections.Counter)  # kills by what was being written
    unfinished: int = 0  # kills that left an unfinished checkpoint
    most_lost: dict[str, int] = field(default_factory=lambda: {"foreground": 0, "background": 0})
    full_disks: int = 0
    refused_by_disk: int = 0


class Run:
    """A run that is disturbed."""

    def __init__(
        self, folder: Path, sets: Path, warm: Warm, ranks: int, background: bool, steps: Sequence[int]
    ) -> None:
        self.folder = folder / "runs" / "small"
        self.ranks = ranks
        self.background = background
        self.log = folder / "log"
        self._warm = warm
        self._read = 0
        self._sound: list[int] = []  # steps of the checkpoints that were complete when they were last looked at
        config = write_config(folder, sets)
        stages = [f"train.stages.{i}.tokens={count * TOKENS_PER_STEP}" for i, count in enumerate(steps)]
        settings = [f"checkpoint.every_steps={INTERVAL}", "checkpoint.keep_last=2", "train.validation.every_steps=20"]
        settings += [f"checkpoint.background={str(background).lower()}", "train.micro_batch_size=4"]
        self.arguments = ["train", str(config), "--skip-health-check", *stages, *settings]

    def start(self, kill_at: int | None = None, rank: int = 0) -> list[WarmProcess]:
        """The ranks; with `kill_at`, rank `rank` kills itself before that change of a file."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environ: dict[str, str] = {}
        port = free_port() if self.ranks > 1 else 0
        started = []
        for number in range(self.ranks):
            if self.ranks > 1:
                place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks}
                environ = {name: str(value) for name, value in place.items()}
                environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
            mortal = str(kill_at or 0) if number == rank else "0"
            command: list[str | Path] = [HERE / "mortal_rank.py", mortal, self.folder, *self.arguments]
            variables = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **environ}
            started.append(self._warm.start(*command, environ=variables, log=self.log, new_session=True))
        return started

    def wait(self, ranks: list[WarmProcess]) -> list[int]:
        """Exit codes of all ranks."""
        return [rank.wait(TIMEOUT) for rank in ranks]

    def new_text(self) -> str:
        """What the ranks have said since this was last asked."""
        text = self.log.read_text()
        new, self._read = text[self._read :], len(text)
        return new

    def last_step(self) -> int:
        """Latest step in the metrics."""
        file = self.folder / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        steps = [int(step) for step in re.findall(r'^\{"step": (\d+), .*\}$', text, re.MULTILINE)]
        return max(steps, default=0)

    def look(self) -> int:
        """Prove that no checkpoint was lost or spoilt; returns the latest step."""
        folder = self.folder / "checkpoints"
        complete = sorted(path for path in folder.glob("step-*") if path.is_dir())
        for path in complete:
            assert_sound(path)
        steps = [int(path.name.removeprefix("step-")) for path in complete]
        latest = max(steps, default=0)
        assert latest >= max(self._sound, default=0), (latest, self._sound)
        if self._sound:
            named = (folder / "latest").read_text().strip()
            assert (folder / named).is_dir(), named
            # Between the two renamings `latest` is one behind.
            assert named in [path.name for path in complete[-2:]], (named, complete)
        self._sound = steps
        return latest


def assert_sound(folder: Path) -> None:
    """Every file of a checkpoint is as its manifest says, and there is no other."""
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(found) == {*manifest, "manifest.json"}, (folder, set(found) ^ {*manifest, "manifest.json"})
    for name, entry in manifest.items():
        content = found[name].read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"]), found[name]


def assert_same(run: Path, expected: Path, num_steps: int) -> None:
    """Two runs of so many steps are the same, bit for bit."""
    assert read_metrics(run) == read_metrics(expected)
    name = f"checkpoints/step-{num_steps:08d}"
    ours, theirs = ((read_parameters(path / name), *read_moments(path / name)) for path in (run, expected))
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.keys() == wanted.keys()
        assert all(found[key].equal(value) for key, value in wanted.items())


class Soak:
    """Everything, with one source of chance, and as many steps in each of a run's three stages as `steps` says."""

    def __init__(self, warm: Warm, folder: Path, seed: int, steps: Sequence[int] = STEPS) -> None:
        self.findings = Findings()
        self._folder = folder
        self._random = random.Random(seed)
        self._sets = folder / "sets"
        write_sets(self._sets)
        self._warm = warm
        self._steps = steps
        self._expected: dict[int, Path] = {}

    def kill(self, count: int, ranks: int, background: bool) -> None:
        """Runs of one kind, until `count` kills are done and the last run is complete."""
        goal = self.findings.kills + count
        while self.findings.kills < goal:
            self._kill_a_run(ranks, background, goal)

    def fill_disks(self, count: int, ranks: int = 1) -> None:
        """Runs on disks that become full, which are then enlarged."""
        for _ in range(count):
            self._fill_a_disk(ranks, background=self._random.random() < 0.5)

    def _kill_a_run(self, ranks: int, background: bool, goal: int) -> None:
        expected = self._undisturbed(ranks)
        run = self._new_run(ranks, background)
        latest = reached = 0
        while self.findings.kills < goal:
            at_change = self._random.random() < 0.5
            change = self._random.randint(1, CHANGES_OF_A_STEP * sum(self._steps)) if at_change else None
            victim = self._random.randrange(ranks)
            if victim and change is not None:
                change = 1 + change // 12  # ranks other than the first write little
            started = run.start(change, victim)
            if not at_change:
                seconds = SECONDS_OF_A_START + SECONDS_OF_A_STEP * sum(self._steps)
                time.sleep(self._random.uniform(0.2, seconds * ranks))
                started[victim].kill()
            codes = run.wait(started)
            reached = self._check(run, latest, reached)
            latest = run.look()
            if all(code == 0 for code in codes):
                break
            assert codes[victim] == -signal.SIGKILL, (codes, run.log.read_text()[-3000:])
            self._note(run)
        codes = run.wait(run.start())
        self._check(run, latest, reached)
        assert codes == [0] * ranks, (codes, run.log.read_text()[-3000:])
        run.look()
        assert_same(run.folder, expected, sum(self._steps))
        self.findings.runs += 1
        shutil.rmtree(run.log.parent)

    def _check(self, run: Run, latest: int, reached: int) -> int:
        """What the last start has lost of the one before; returns how far it has come itself."""
        resumed = [int(step) for step in re.findall(r"continuing after step (\d+)", run.new_text())]
        last = run.last_step()
        for step in resumed:
            assert step == latest, (step, latest)
            kind = "background" if run.background else "foreground"
            lost = reached - step
            assert lost <= (2 * INTERVAL if run.background else INTERVAL), (lost, kind)
            self.findings.most_lost[kind] = max(self.findings.most_lost[kind], lost)
        return last

    def _note(self, run: Run) -> None:
        self.findings.kills += 1
        left = [path.name for path in (run.folder / "checkpoints").glob(".tmp-*")]
        for name in left or ["nothing"]:
            removed = re.sub(r"^\.tmp-[0-9a-f]*[a-f][0-9a-f]*-", "a checkpoint that was removed: .tmp-X-", name)
            self.findings.during[re.sub(r"\d{8}", "N", removed)] += 1
        self.findings.unfinished += bool(left)

    def _fill_a_disk(self, ranks: int, background: bool) -> None:
        expected = self._undisturbed(ranks)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        kilobytes = self._random.randint(200, 2500)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
        try:
            run = Run(folder, self._sets, self._warm, ranks, background, self._steps)
            run.log = self._folder / "full-disk.log"
            run.log.write_text("")
            codes = run.wait(run.start())
            run.look()
            if any(codes):
                text = run.log.read_text()
                assert codes == [1] * ranks and "No space left" in text, (codes, text[-3000:])
                self.findings.refused_by_disk += 1
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            codes = run.wait(run.start())
            assert codes == [0] * ranks, run.log.read_text()[-3000:]
            run.look()
            assert_same(run.folder, expected, sum(self._steps))
            self.findings.full_disks += 1
        finally:
            subprocess.run(["umount", folder], check=True)

    def _new_run(self, ranks: int, background: bool) -> Run:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return Run(folder, self._sets, self._warm, ranks, background, self._steps)

    def _undisturbed(self, ranks: int) -> Path:
        if ranks not in self._expected:
            run = self._new_run(ranks, background=False)
            assert run.wait(run.start()) == [0] * ranks, run.log.read_text()
            self._expected[ranks] = run.folder
        return self._expected[ranks]


def report(findings: Findings, seed: int, seconds: float) -> str:
    """For people."""
    lines = [
        "# Kills and full disks\n",
        f"`python {' '.join(sys.argv)}`, seed {seed}, {seconds / 60:.0f} minutes.\n",
        f"- {findings.kills} kills in {findings.runs} runs of {sum(STEPS)} steps, a checkpoint every {INTERVAL}"
        " steps. Metrics and last checkpoint of each run are bitwise identical to those of an undisturbed run.",
        f"- {findings.unfinished} of the kills left unfinished files (N is a number):",
        *[f"    - {count} times {name}" for name, count in findings.during.most_common()],
        f"- Lost work: at most {findings.most_lost['foreground']} steps if checkpoints are written in the foreground,"
        f" {findings.most_lost['background']} in the background.",
        f"- {findings.full_disks} runs on small disks, of which {findings.refused_by_disk} ran full and resumed"
        " after the disk was enlarged.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--full-disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the report")
    parsed = parser.parse_args()
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="soak-"))  # stays if something is found
    with Warm() as warm:
        soak = Soak(warm, folder, parsed.seed)
        for ranks, background, share in ((1, True, 0.4), (1, False, 0.3), (2, True, 0.2), (2, False, 0.1)):
            soak.kill(round(parsed.kills * share), ranks, background)
            print(f"{soak.findings.kills} kills, {time.monotonic() - started:.0f} s", flush=True)
        soak.fill_disks(parsed.full_disks - parsed.full_disks // 4)
        soak.fill_disks(parsed.full_disks // 4, ranks=2)
    shutil.rmtree(folder)
    text = report(soak.findings, parsed.seed, time.monotonic() - started)
    print(text)
    if parsed.output is not None:
        parsed.output.mkdir(parents=True, exist_ok=True)
        (parsed.output / "soak.md").write_text(text)


if __name__ == "__main__":
    main()
