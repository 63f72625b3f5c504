"""An environment as one archive: unpacked once on a node, whole or not at all, and never another user's."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_users import STRANGER, USER, command_as, needs_root

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "env_archive.sh"
PREFIX = ["python", "-c", "import sys; print(sys.prefix)"]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small virtual environment with something to notice damage in. Tests must not change it."""
    folder = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "large").write_bytes(os.urandom(200_000))
    return folder


@pytest.fixture
def scratch() -> Iterator[Path]:
    """What TMPDIR is on a node: other users can write to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


def environ(scratch: Path, *first: Path, **more: str) -> dict[str, str]:
    path = ":".join([*map(str, first), "/usr/bin", "/bin"])
    return {"PATH": path, "TMPDIR": str(scratch), "HOME": "/nonexistent", **more}


def script(scratch: Path, *arguments: object, timeout: float = 60, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env=environ(scratch, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def packed(venv: Path, folder: Path, name: str = "env.tar.gz") -> Path:
    done = script(folder, "make", venv, folder / name)
    assert done.returncode == 0, done.stderr
    return folder / name


def unpacked(scratch: Path) -> list[Path]:
    return [path for home in scratch.glob("tolktrain-env-*") for path in home.iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["env.tar.zst", "env.tar.gz", "env.tar"])
def test_the_command_runs_in_the_unpacked_environment(venv: Path, tmp_path: Path, scratch: Path, name: str) -> None:
    if name.endswith(".zst") and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    archive = packed(venv, tmp_path, name)
    done = script(scratch, "run", archive, *PREFIX)
    (folder,) = unpacked(scratch)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}\n", "")
    assert (folder / "large").read_bytes() == (venv / "large").read_bytes()
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    (folder / "mark").touch()
    again = script(scratch, "run", archive, "sh", "-c", "echo $VIRTUAL_ENV; umask; exit 75")
    assert (again.returncode, again.stdout.split()) == (75, [str(folder), f"{current_umask():04o}"])
    assert (folder / "mark").exists(), "it is not unpacked again"


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def counting_tar(folder: Path, then: str) -> Path:
    """A folder with a `tar` that notes in `calls` how often it unpacks, and does something else then."""
    folder.mkdir()
    (folder / "tar").write_text(f'#!/bin/bash\necho >> {folder}/calls\n{then}\nexec /usr/bin/env -i /bin/tar "$@"\n')
    (folder / "tar").chmod(0o755)
    return folder


def test_the_ranks_of_a_node_wait_for_one_of_them(venv: Path, tmp_path: Path, scratch: Path) -> None:
    archive = packed(venv, tmp_path)
    tools = counting_tar(tmp_path / "tools", "sleep 1")
    ranks = [
        subprocess.Popen(
            ["bash", SCRIPT, "run", archive, *PREFIX], env=environ(scratch, tools), stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    said = {rank.communicate(timeout=300)[0] for rank in ranks}
    assert said == {f"{unpacked(scratch)[0]}\n"} and [rank.returncode for rank in ranks] == [0] * 6
    assert len((tools / "calls").read_text().splitlines()) == 1


def test_waiting_has_an_end(venv: Path, tmp_path: Path, scratch: Path) -> None:
    archive = packed(venv, tmp_path)
    assert script(scratch, "run", archive, "true").returncode == 0
    (home,) = scratch.iterdir()
    with subprocess.Popen(["flock", home / "lock", "sleep", "60"]) as holder:
        while subprocess.run(["flock", "-n", home / "lock", "true"], check=False).returncode == 0:
            time.sleep(0.05)
        done = script(scratch, "run", archive, "true", TOLKTRAIN_ENV_WAIT="1")
        holder.kill()
    assert done.returncode == 2 and f"another process has been unpacking into {home} for 1 s" in done.stderr


def test_a_new_archive_replaces_the_old_one_when_no_process_uses_that(
    venv: Path, tmp_path: Path, scratch: Path
) -> None:
    archive = packed(venv, tmp_path)
    command = ["bash", SCRIPT, "run", archive, "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, env=environ(scratch), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None and user.stdout.readline() == b"\n"
        (first,) = unpacked(scratch)
        packed(venv, tmp_path)
        assert script(scratch, "run", archive, "true").returncode == 0
        assert len(unpacked(scratch)) == 2 and (first / "pyvenv.cfg").exists()
        user.communicate(timeout=300)
    packed(venv, tmp_path)
    done = script(scratch, "run", archive, *PREFIX)
    assert [f"{path}\n" for path in unpacked(scratch)] == [done.stdout]


@pytest.mark.parametrize("name", ["env.tar.zst", "env.tar.gz", "env.tar"])
@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_cut_archive_is_not_used(venv: Path, tmp_path: Path, scratch: Path, name: str, share: float) -> None:
    if name.endswith(".zst") and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    archive = packed(venv, tmp_path, name)
    size = int(archive.stat().st_size * share)
    # A plain one between two members, where tar sees nothing wrong.
    os.truncate(archive, size - size % 512)
    done = script(scratch, "run", archive, *PREFIX)
    assert done.returncode == 2 and done.stdout == "" and not unpacked(scratch)
    assert f"{archive} could not be unpacked: it is damaged or not complete" in done.stderr


def test_changed_bytes_are_noticed(venv: Path, tmp_path: Path, scratch: Path) -> None:
    archive = packed(venv, tmp_path)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    done = script(scratch, "run", archive, *PREFIX)
    assert done.returncode == 2 and not unpacked(scratch)


def test_what_is_no_environment_is_refused(venv: Path, tmp_path: Path, scratch: Path) -> None:
    absent = script(scratch, "run", tmp_path / "absent.tar.gz", "true")
    assert absent.returncode == 2 and "TOLKTRAIN_ENV_ARCHIVE:" in absent.stderr and "not a file that" in absent.stderr
    os.mkfifo(tmp_path / "fifo.tar.gz")
    assert "is not a file that" in script(scratch, "run", tmp_path / "fifo.tar.gz", "true").stderr
    subprocess.run(["tar", "-czf", tmp_path / "other.tar.gz", "-C", venv, "large"], check=True)
    other = script(scratch, "run", tmp_path / "other.tar.gz", "true")
    assert other.returncode == 2 and "holds no virtual environment whose bin/python runs here" in other.stderr
    assert not unpacked(scratch)
    assert "must end in" in script(scratch, "make", venv, tmp_path / "env.zip").stderr
    assert "is not a virtual environment" in script(scratch, "make", tmp_path, tmp_path / "env.tar").stderr


def test_a_killed_start_leaves_nothing_half_unpacked_to_the_next(venv: Path, tmp_path: Path, scratch: Path) -> None:
    archive = packed(venv, tmp_path)
    tools = counting_tar(tmp_path / "tools", "mkdir -p $2/half; kill -KILL $PPID; exit 1")
    killed = subprocess.run(["bash", SCRIPT, "run", archive, *PREFIX], env=environ(scratch, tools), check=False)
    assert killed.returncode == -signal.SIGKILL and (unpacked(scratch)[0] / "half").exists()
    done = script(scratch, "run", archive, *PREFIX)
    assert [f"{path}\n" for path in unpacked(scratch)] == [done.stdout]


@needs_root
def test_a_full_disk(venv: Path, tmp_path: Path, scratch: Path) -> None:
    archive = packed(venv, tmp_path)
    mounts = f"mount -t tmpfs -o size=128k tmpfs {scratch}; bash {SCRIPT} run {archive} true; echo $?; ls {scratch}/*"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounts], env=environ(scratch), capture_output=True, text=True, check=False
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.split() == ["2", "lock"], "nothing is left"
    assert "No space left on device" in done.stderr and "free); nothing of it is used" in done.stderr


@needs_root
@pytest.mark.parametrize("trap", ["folder", "link", "file", "fifo"])
def test_what_a_stranger_has_prepared_is_not_used(venv: Path, tmp_path: Path, scratch: Path, trap: str) -> None:
    archive = packed(venv, tmp_path)
    os.chmod(archive, 0o644)
    stranger, mark = scratch / "stranger", scratch / "mark"
    # What the user's own folder would look like, but for a python of the stranger's.
    assert script(scratch, "run", archive, "true").returncode == 0
    (made,) = unpacked(scratch)
    (made / "bin" / "python").unlink()
    (made / "bin" / "python").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (made / "bin" / "python").chmod(0o755)
    made.parent.rename(stranger)
    subprocess.run(["chown", "-R", f"{STRANGER}:{STRANGER}", stranger], check=True)
    subprocess.run(["chmod", "-R", "a+rwX", stranger], check=True)
    name = scratch / f"tolktrain-env-{USER}"
    if trap == "folder":
        stranger.rename(name)
    elif trap == "link":
        name.symlink_to(stranger)
    elif trap == "file":
        name.touch()
    else:
        os.mkfifo(name)
    os.chown(name, STRANGER, STRANGER, follow_symlinks=False)
    said = []
    for _ in range(2):
        done = subprocess.run(
            command_as(USER, "bash", str(SCRIPT), "run", str(archive), *PREFIX),
            env=environ(scratch),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said.append(Path(done.stdout.strip()))
    assert said[0] == said[1] and said[0].parent.parent == scratch, "the second finds what the first has made"
    assert said[0].stat().st_uid == USER and said[0].parent.name.startswith(f"tolktrain-env-{USER}.")
    assert not mark.exists()
