"""The secret by which the ranks of a job know each other."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from small_disk import MakeDisk

from tolktrain.cluster.watch import secret
from tolktrain.cluster.watch.secret import SECRET_FILE, job_key, session_keys
from tolktrain.errors import UserError

GIVEN = {"TOLKTRAIN_JOB_SECRET": "0123456789abcdef"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with folders of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(secret, "_MACHINES_FOLDER", tmp_path / "tmp")
    return {"HOME": str(tmp_path / "home")}


def kept(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"]) / ".local" / "state" / "tolktrain" / SECRET_FILE


def in_tmp() -> Path:
    return secret._MACHINES_FOLDER / f"tolktrain-{os.geteuid()}" / SECRET_FILE


def test_the_launchers_secret(home: dict[str, str]) -> None:
    environ = {**home, **GIVEN}
    assert job_key(1, 2, environ) == job_key(1, 2, dict(environ))
    assert not kept(home).exists()
    others = [
        job_key(1, 2, {**environ, "TOLKTRAIN_JOB_SECRET": "0123456789abcdeg"}),
        job_key(2, 2, environ),
        job_key(1, 3, environ),
        job_key(1, 2, {**environ, "TORCHELASTIC_RESTART_COUNT": "1"}),
        job_key(1, 2, {**environ, "TORCHELASTIC_RUN_ID": "x"}),
    ]
    assert len({job_key(1, 2, environ), *others}) == 6


def test_a_secret_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(UserError, match="has 6 characters; .* openssl rand -hex 32"):
        job_key(1, 2, {"TOLKTRAIN_JOB_SECRET": "secret"})


def test_one_that_the_user_alone_can_read_is_made_and_kept(home: dict[str, str]) -> None:
    key = job_key(1, 2, home)
    assert stat.S_IMODE(kept(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept(home).parent.stat().st_mode) == 0o700
    assert job_key(1, 2, home) == key
    assert os.listdir(kept(home).parent) == [SECRET_FILE]
    kept(home).unlink()
    assert job_key(1, 2, home) != key


def _make_key(home: dict[str, str], start: object, found: object) -> None:
    start.wait()
    found.put(job_key(1, 2, home))


def test_ranks_that_start_together_find_one(home: dict[str, str]) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_make_key, args=(home, start, found)) for _ in range(8)]
    for process in processes:
        process.start()
    keys = {found.get(timeout=300) for _ in processes}
    for process in processes:
        process.join()
    assert len(keys) == 1


@pytest.mark.parametrize("fault", ["readable", "link", "folder", "short", "fifo", "folder of others", "linked folder"])
def test_a_file_that_may_not_be_ours_alone_is_not_used(home: dict[str, str], fault: str, tmp_path: Path) -> None:
    path = kept(home)
    path.parent.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    known = "0" * 64
    if fault == "readable":
        path.write_text(known)
        path.chmod(0o644)
    elif fault == "link":
        (tmp_path / "elsewhere").write_text(known)
        (tmp_path / "elsewhere").chmod(0o600)
        path.symlink_to(tmp_path / "elsewhere")
    elif fault == "folder":
        path.mkdir()
    elif fault == "short":
        path.write_text(known[1:])
        path.chmod(0o600)
    elif fault == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.write_text(known)
        path.chmod(0o600)
        path.parent.chmod(0o777)
        if fault == "linked folder":
            path.parent.chmod(0o700)
            path.parent.rename(tmp_path / "moved")
            path.parent.symlink_to(tmp_path / "moved")
    key = job_key(1, 2, home)
    assert key != job_key(1, 2, {"TOLKTRAIN_JOB_SECRET": known})
    assert in_tmp().is_file(), "another place is taken"
    assert job_key(1, 2, home) == key


def test_without_any_place_the_message_says_what_to_set(home: dict[str, str]) -> None:
    Path(home["HOME"]).write_text("no folder")
    in_tmp().parent.mkdir()
    in_tmp().parent.chmod(0o777)
    with pytest.raises(UserError, match="set TOLKTRAIN_JOB_SECRET to the same random text") as caught:
        job_key(1, 2, home)
    assert str(kept(home)) in str(caught.value) and str(in_tmp()) in str(caught.value)


def test_a_folder_of_another_user_is_not_used(home: dict[str, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    in_tmp().parent.mkdir(mode=0o700)
    os.chown(in_tmp().parent, 4243, 4243)
    with pytest.raises(UserError, match="belongs to somebody else"):
        job_key(1, 2, {})


def test_each_connection_and_direction_has_a_key_of_its_own() -> None:
    keys = {
        key
        for rank, ours, theirs in [(0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "a", "c")]
        for key in session_keys(b"key", rank, ours, theirs)
    }
    assert len(keys) == 8 and all(len(key) == 32 for key in keys)


def test_a_full_disk_is_no_bad_input(make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make_disk(64)
    monkeypatch.setattr(secret, "_MACHINES_FOLDER", disk.path)
    disk.fill()
    with pytest.raises(UserError, match="No space left on device") as caught:
        job_key(1, 2, {"HOME": str(disk.path)})
    assert caught.value.by_machine and not disk.files()
    disk.empty()
    assert job_key(1, 2, {"HOME": str(disk.path)})
