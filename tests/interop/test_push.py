"""Exported folders on the hub: a server on this machine takes its place."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, hub_server

from tolktrain import cli
from tolktrain.errors import UserError

pytestmark = pytest.mark.transformers  # whose versions need different versions of the client

# The client reads its settings when it is imported, so each case is a call in a process of its own settings.
PROGRAM = """
import json, sys
from pathlib import Path
from tolktrain.errors import UserError
from tolktrain.interop.export.push import Hub
for repository, public in json.loads(sys.argv[2]):
    try:
        Hub(repository, public).upload(Path(sys.argv[1]), "Weights", print)
    except UserError as error:
        print(f"refused (by the machine: {error.by_machine}): {error}")
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub with a token that may write, and one that may not."""
    with hub_server({"hf_writes": True, "hf_reads": False}) as server:
        yield server


def push(address: str, token: str | None, folder: Path, *cases: tuple[str, bool]) -> list[str]:
    """What each case prints."""
    environ = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "0"}
    environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": token or ""}
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(cases)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something exported."""
    made = tmp_path / "exported"
    (made / "speech_tokenizer").mkdir(parents=True)
    (made / "model-00001-of-00001.safetensors").write_bytes(bytes(range(256)) * 8)
    (made / "README.md").write_text("# SmolTolk\n")
    (made / "speech_tokenizer" / "speech_tokenizer.json").write_text("{}")
    return made


def test_a_folder_is_uploaded_into_a_private_repository(hub: HubServer, folder: Path) -> None:
    """Again into the same one; a public one only if that is said."""
    hub.private["me/open"] = False
    cases = (("me/model", False), ("me/model", False), ("me/open", False), ("me/open", True), ("me/shown", True))
    first, second, third, *others = push(hub.address, "hf_writes", folder, *cases)
    assert first.startswith("uploaded to me/model (private)") and second == first
    assert "me/open: the repository exists and is public" in third and "refused (by the machine: False)" in third
    assert all("(public)" in line for line in others) and len(others) == 2
    assert hub.private == {"me/open": False, "me/model": True, "me/shown": False}
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == {name: written for name in ("me/model", "me/open", "me/shown")}


def test_problems_of_tokens_say_what_to_do(hub: HubServer, folder: Path) -> None:
    for token, message in {
        None: "there is no token; create one that may write",
        "hf_unknown": r"does not accept the token (HTTP 401); log in again with `hf auth login`",
        "hf_reads": "may not write there (HTTP 403); create one with write permission for me",
    }.items():
        (line,) = push(hub.address, token, folder, ("me/model", False))
        assert line.startswith("refused (by the machine: False): --push me/model: ") and message in line
        assert (f"is complete: upload it with `hf upload me/model {folder}`" in line) == (token == "hf_reads")
    assert not hub.files and not hub.private


def test_a_hub_that_cannot_be_reached(folder: Path) -> None:
    lines = push("http://127.0.0.1:9", "hf_writes", folder, ("me/model", False), ("no repository", False))
    assert lines[0].startswith("refused (by the machine: True): --push me/model: the hub cannot be reached")
    assert "expected OWNER/NAME, such as me/smoltolk-150m" in lines[1]


def test_the_hub_is_asked_before_anything_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    class Recorded:
        def __init__(self, repository: str, public: bool) -> None:
            calls.append((repository, public, (tmp_path / "hf").exists()))
            if repository == "me/refused":
                raise UserError("no token")

        def upload(self, folder: Path, message: str, report: object) -> None:
            calls.append((sorted(path.name for path in folder.glob("*.json"))[:2], message))

    monkeypatch.setattr("tolktrain.interop.export.push.Hub", Recorded)
    arguments = ["export", str(tiny_run), str(tmp_path / "hf")]
    assert cli.main([*arguments, "--push", "me/refused"]) == 2 and not (tmp_path / "hf").exists()
    assert cli.main([*arguments, "--public"]) == 2
    assert "--public belongs to --push" in capsys.readouterr().err
    assert cli.main([*arguments, "--push", "me/model", "--public"]) == 0
    message = "Weights of step-00000002 in the format hf"
    assert calls[1:] == [("me/model", True, False), (["architecture.json", "config.json"], message)]
