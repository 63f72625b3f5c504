"""A run has one owner, and an owner that was overtaken finds out."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tolktrain.cluster.identity import ProcessIdentity
from tolktrain.errors import UserError
from tolktrain.runs import lease as lease_module
from tolktrain.runs.lease import Lease, LostLeaseError

FOR_EVER = 10_000.0  # a test that waited for this would hang
SHORT = 1.0


def take(folder: Path, lease_seconds: float = FOR_EVER, **environ: str) -> Lease:
    return Lease.take(folder, report=lambda _: None, lease_seconds=lease_seconds, environ=environ)


def read(folder: Path, token: int) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "lease" / f"{token:08d}.json").read_text())
    return content


def leave(folder: Path, token: int, **changes: object) -> None:
    """The lease of an owner that differs from this process in `changes`, and renews it no more."""
    owner = replace(ProcessIdentity.mine({}), **changes)
    (folder / "lease").mkdir(exist_ok=True)
    content = {"renewals": 3, "released": False, "id": "another", "owner": owner.to_dict(), "since": "yesterday"}
    (folder / "lease" / f"{token:08d}.json").write_text(json.dumps(content))


class Holder:
    """A process of lease_holder.py."""

    def __init__(self, folder: Path, lease_seconds: float) -> None:
        script = Path(__file__).with_name("lease_holder.py")
        command = [sys.executable, str(script), str(folder), str(lease_seconds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.hear()


@pytest.fixture
def hold() -> Iterator[Callable[[Path, float], Holder]]:
    """Starts processes that hold leases."""
    holders: list[Holder] = []

    def hold(folder: Path, lease_seconds: float) -> Holder:
        holders.append(Holder(folder, lease_seconds))
        return holders[-1]

    yield hold
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


@pytest.mark.slow
def test_of_twenty_that_start_together_one_wins(tmp_path: Path) -> None:
    """Onto an empty folder, after an owner that died, and after one that released; in turns."""
    script = Path(__file__).with_name("lease_race.py")
    command = [sys.executable, str(script), str(tmp_path), "20", "4"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 4
    for token, answers in enumerate(rounds, start=1):
        refused = [answer for answer in answers if isinstance(answer, str)]
        assert len(answers) == 20 and [answer for answer in answers if answer not in refused] == [token]
        assert all("another training of this run is active: process " in message for message in refused)
    assert sorted(os.listdir(tmp_path / "lease")) == [f"{token:08d}.json" for token in range(1, 5)]


def test_the_message_names_the_owner_and_how_to_end_it(tmp_path: Path) -> None:
    """The owner's Slurm job, its process and user; and a refused start changes nothing."""
    with take(tmp_path, 3.0, SLURM_JOB_ID="123") as lease:
        before = sorted(os.listdir(tmp_path / "lease"))
        messages: list[str] = []
        with pytest.raises(UserError) as refused:
            Lease.take(tmp_path, report=messages.append, lease_seconds=FOR_EVER / 1000, environ={})
        me = ProcessIdentity.mine({})
        described = f"job 123 on {me.host}, process {os.getpid()}, user {me.user}, since 20"
        assert f"{tmp_path}: another training of this run is active: {described}" in str(refused.value)
        assert str(refused.value).endswith("; end it (scancel 123) or choose another run.name")
        assert len(messages) == 1 and messages[0].startswith("waiting up to 10 seconds") and described in messages[0]
        assert sorted(os.listdir(tmp_path / "lease")) == before == ["00000001.json"]
        lease.check()


def test_a_released_lease_is_taken_at_once(tmp_path: Path) -> None:
    with take(tmp_path) as first:
        assert first.token == 1
    first.release()
    with take(tmp_path) as second:
        assert second.token == 2
        with pytest.raises(LostLeaseError):
            first.check()
        first.release()
        assert read(tmp_path, 2)["released"] is False
        second.check()


def test_after_kill_9_the_next_start_waits_for_nothing(tmp_path: Path, hold: Callable[[Path, float], Holder]) -> None:
    holder = hold(tmp_path, FOR_EVER)
    assert holder.hear() == "taken 1"
    holder.process.send_signal(signal.SIGKILL)
    # Not yet waited for, it is a zombie, which can write nothing more.
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)
    with take(tmp_path) as lease:
        assert lease.token == 2


def test_an_owner_that_dies_while_another_waits(tmp_path: Path, hold: Callable[[Path, float], Holder]) -> None:
    first = hold(tmp_path, FOR_EVER)
    assert first.hear() == "taken 1"
    second = hold(tmp_path, 100.0)
    assert second.hear().startswith("report waiting up to 100 seconds")
    first.process.kill()
    assert second.hear() == "taken 2"


def test_a_stopped_owner_is_overtaken_and_finds_out(
    tmp_path: Path, hold: Callable[[Path, float], Holder], caplog: pytest.LogCaptureFixture
) -> None:
    holder = hold(tmp_path, SHORT)
    assert holder.hear() == "taken 1" and holder.ask("check") == "held"
    holder.process.send_signal(signal.SIGSTOP)
    with take(tmp_path, SHORT) as lease:
        assert lease.token == 2
        assert "it has not renewed its lease for 1 seconds" in caplog.text
        holder.process.send_signal(signal.SIGCONT)
        answer = holder.ask("check")
        assert answer.startswith(f"lost {tmp_path}: another training has taken this run over: process ")
        assert f"process {os.getpid()} on " in answer and "this process must not write to it" in answer
        assert holder.ask("release") == "released"
        lease.check()
        assert read(tmp_path, 2)["released"] is False


def test_an_owner_notices_by_itself(tmp_path: Path) -> None:
    with take(tmp_path, SHORT) as lease:
        assert lease.lost is None
        leave(tmp_path, 2, host="node7", job_id="55")
        deadline = time.monotonic() + 300
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.lost is not None and "job 55 on node7" in lease.lost
    assert read(tmp_path, 1)["released"] is False


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_without_its_file_the_lease_is_lost(tmp_path: Path, how: str) -> None:
    with take(tmp_path) as lease:
        (tmp_path / "lease" / "00000001.json").unlink()
        if how == "replaced":
            leave(tmp_path, 1)
        with pytest.raises(LostLeaseError, match="00000001.json was removed or replaced"):
            lease.check()


def test_a_forked_child_does_not_release(tmp_path: Path, hold: Callable[[Path, float], Holder]) -> None:
    holder = hold(tmp_path, 3.0)
    assert holder.hear() == "taken 1" and holder.ask("fork") == "forked"
    assert read(tmp_path, 1)["released"] is False and holder.ask("check") == "held"


DEAD = {
    "another boot of the node": {"boot_id": "before"},
    "another process of the same number": {"start_ticks": 1},
    "no such process": {"pid": 2**22 + 1},
    "its job was requeued": {"host": "node7", "boot_id": "x", "job_id": "55", "restart_count": 1},
}
UNKNOWN = {
    "another node": {"host": "node7", "boot_id": "x"},
    "a container": {"pid_namespace": "pid:[1]", "pid": 2**22 + 1},
    "a host name that many have": {"host": "localhost", "boot_id": "x"},
    "the same start of its job": {"host": "node7", "boot_id": "x", "job_id": "55", "restart_count": 2},
    "a job of another cluster": {"host": "node7", "boot_id": "x", "job_id": "55", "cluster": "other"},
}


@pytest.mark.parametrize("changes", DEAD.values(), ids=DEAD)
def test_who_is_certainly_dead_is_overtaken_at_once(tmp_path: Path, changes: dict[str, object]) -> None:
    leave(tmp_path, 7, **changes)
    with take(tmp_path, SLURM_JOB_ID="55", SLURM_RESTART_COUNT="2") as lease:
        assert lease.token == 8


@pytest.mark.parametrize("changes", UNKNOWN.values(), ids=UNKNOWN)
def test_who_may_live_is_watched(tmp_path: Path, changes: dict[str, object]) -> None:
    leave(tmp_path, 7, **changes)
    begun = time.monotonic()
    with take(tmp_path, 0.3, SLURM_JOB_ID="55", SLURM_RESTART_COUNT="2") as lease:
        assert lease.token == 8 and time.monotonic() - begun >= 0.3


DAMAGE = {"empty": 0, "half": 300}


@pytest.mark.parametrize("size", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_lease_is_watched_and_overtaken(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    with take(tmp_path):
        pass
    os.truncate(tmp_path / "lease" / "00000001.json", size)
    with take(tmp_path, 0.3) as lease:
        assert lease.token == 2 and "an unknown process (its lease file is damaged)" in caplog.text


@pytest.mark.parametrize("content", ["[]", '{"owner": {"pid": "x"}, "released": 1}', "\0\xff{", "a folder"])
def test_nonsense_in_the_folder_does_not_stop_a_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lease" / "00000005.json"
    path.parent.mkdir()
    if content == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content.encode("latin-1"))
    (path.parent / "notes.txt").write_text("nothing")
    with take(tmp_path, 0.3) as lease:
        assert lease.token == 6


def test_a_living_owner_mends_its_damaged_file(tmp_path: Path) -> None:
    with take(tmp_path, 3.0) as lease:
        os.truncate(tmp_path / "lease" / "00000001.json", 100)
        with pytest.raises(UserError, match="another training of this run is active"):
            take(tmp_path)
        lease.check()
    with take(tmp_path) as lease:
        assert lease.token == 2


def test_old_files_are_tidied(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / ".tmp-of-a-killed-starter").touch()
    for _ in range(20):
        take(tmp_path).release()
    assert sorted(os.listdir(tmp_path / "lease")) == [f"{token:08d}.json" for token in range(5, 21)]


@pytest.mark.parametrize("seen", [[], [1], [19]])
def test_a_stale_listing_does_not_give_an_old_number(
    tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a network file system that shows what the folder held some time ago, where 5 to 20 are."""
    for _ in range(20):
        take(tmp_path).release()
    (tmp_path / "lease" / "00000001.json").write_text(json.dumps({"released": True}))
    real, stale = lease_module._numbers, [seen, seen]
    monkeypatch.setattr(lease_module, "_numbers", lambda folder: stale.pop() if stale else real(folder))
    with take(tmp_path) as lease:
        assert lease.token == 21
    assert "00000002.json" not in os.listdir(tmp_path / "lease")


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with take(tmp_path, 3.0) as lease:
        assert read(tmp_path, 1)["owner"] == ProcessIdentity.mine({}).to_dict()
        with pytest.raises(UserError, match="another training of this run is active"):
            take(tmp_path)
        lease.check()


def test_an_answer_that_was_lost_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS client that repeats a request gets an error that the name exists, which it has created itself."""
    link = os.link

    def ask_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", ask_twice)
    with take(tmp_path) as lease:
        assert lease.token == 1


def test_a_full_disk_can_be_started_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fills it may be an unfinished checkpoint, which the start removes; then the lease is written."""
    write = os.pwrite

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with take(tmp_path, SHORT) as lease, caplog.at_level(logging.WARNING):
        path = tmp_path / "lease" / "00000001.json"
        assert path.read_bytes() == b""
        lease.check()
        deadline = time.monotonic() + 300
        while "cannot be renewed" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert re.search("00000001.json cannot be renewed .*No space left", caplog.text)
        monkeypatch.setattr(os, "pwrite", write)
        while not path.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read(tmp_path, 1)["owner"] == ProcessIdentity.mine({}).to_dict()
