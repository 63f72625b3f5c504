"""A user, and a stranger who prepares traps for him in a folder that both may write to. Needs root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

import pytest

USER, STRANGER = 4242, 4243

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root, with setpriv, can act as two users"
)


def command_as(user: int, *command: str) -> list[str]:
    """A command run as a user, who may besides read everything: Python itself may lie in root's home folder."""
    capability = "+dac_read_search"
    identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return ["setpriv", *identity, f"--inh-caps={capability}", f"--ambient-caps={capability}", *command]


def start_as(
    user: int, code: str, *arguments: str, environ: Mapping[str, str] = MappingProxyType({})
) -> "subprocess.Popen[str]":
    """Start Python code as a user without a home folder."""
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "OMP_NUM_THREADS")}
    return subprocess.Popen(
        command_as(user, sys.executable, "-c", code, *arguments),
        env={**clean, "HOME": "/nonexistent", **environ},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_as(
    user: int, code: str, *arguments: str, environ: Mapping[str, str] = MappingProxyType({})
) -> "subprocess.CompletedProcess[str]":
    """Run Python code as a user; one that hangs fails the test."""
    process = start_as(user, code, *arguments, environ=environ)
    try:
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
