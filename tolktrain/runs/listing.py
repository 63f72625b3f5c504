"""Lists the checkpoints of a run, with their condition."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tolktrain.checkpoint.manifest import MANIFEST, looks_complete, verify
from tolktrain.checkpoint.store import LATEST, CheckpointStore, read_state, step_of
from tolktrain.errors import UserError
from tolktrain.files.reading import read_text
from tolktrain.runs.paths import RunPaths

Condition = Literal["complete", "verified", "damaged", "renamed", "unfinished"]

_STEP = re.compile(r"(\.tmp-.*?)?step-([0-9]{8,18})(.*)")


@dataclass(frozen=True)
class Entry:
    """One folder of checkpoints/.

    complete: all files have their full size. verified: their checksums are correct too. damaged: see `problem`.
    renamed: found damaged at a start, or undone by a rollback. unfinished: being written, or left by an interrupted
    save.
    """

    folder: Path
    step: int
    condition: Condition
    num_bytes: int
    written: float  # seconds since 1970
    problem: str = ""
    is_latest: bool = False
    state: Mapping[str, Any] = field(default_factory=dict)  # state.json; empty if it cannot be read

    @property
    def stage(self) -> str:
        """Name of the stage that it was written in."""
        return str(self.state.get("stage_name", "-"))

    @property
    def layout(self) -> str:
        """The layout that wrote it, as "tensor 2, data 4, ZeRO 1"; "1 process, ZeRO 1"."""
        layout = self.state.get("layout")
        if not isinstance(layout, dict):
            return "-"
        sizes = [f"{name} {layout[name]}" for name in ("tensor", "pipeline", "data") if layout.get(name, 1) != 1]
        zero = [f"ZeRO {layout['zero_stage']}"] if "zero_stage" in layout else []
        return ", ".join([*(sizes or ["1 process"]), *zero])

    @property
    def loss(self) -> str:
        """The loss stored in the checkpoint."""
        metrics = self.state.get("metrics")
        loss = metrics.get("loss") if isinstance(metrics, dict) else None
        return f"{loss:.4f}" if isinstance(loss, (int, float)) else "-"


def list_checkpoints(run_dir: Path, checksums: bool = False) -> list[Entry]:
    """All checkpoints of a run, lowest step first; with `checksums`, every file is read and verified.

    Raises UserError if there are none.
    """
    parent = RunPaths(run_dir).checkpoints
    if not parent.is_dir():
        raise UserError(
            f"{run_dir} has no checkpoints: it has no folder {parent}; train until the first one is written"
        )
    latest = _latest(parent)
    found = [(match, folder) for folder in parent.iterdir() if (match := _STEP.fullmatch(folder.name))]
    if not found:
        raise UserError(f"{run_dir} has no checkpoints: none is in {parent}; train until the first one is written")
    entries = [_entry(folder, match, folder.name == latest, checksums) for match, folder in found if folder.is_dir()]
    return sorted(entries, key=lambda entry: (entry.step, entry.folder.name))


def choose_checkpoint(run_dir: Path, step: int | None = None, warn: Callable[[str], None] = lambda _: None) -> Path:
    """The checkpoint of `step`, or the latest valid one. This process verifies its checksums.

    `warn` gets a message for each damaged checkpoint that is skipped.

    Raises UserError if there is none, the requested one is damaged, or one has another format.
    """
    store = CheckpointStore(RunPaths(run_dir).checkpoints)
    folders = {step_of(folder): folder for folder in store.latest_first()}
    if step is not None:
        if step not in folders:
            there = ", ".join(map(str, sorted(folders))) or "none"
            raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {there}")
        verify(folders[step])
        return folders[step]
    problems: list[str] = []

    def note(problem: str) -> None:
        problems.append(problem)
        warn(problem)

    folder = store.find_latest(note)
    if folder is None:
        problems = problems or ["train until the first one is written"]
        raise UserError("; ".join([f"{run_dir} has no valid checkpoint", *problems]))
    return folder


def _entry(folder: Path, match: "re.Match[str]", is_latest: bool, checksums: bool) -> Entry:
    condition, problem = _condition(folder, match, checksums)
    try:
        state = read_state(folder)
    except UserError:
        state = {}
    manifest = folder / MANIFEST
    try:
        written = (manifest if manifest.exists() else folder).stat().st_mtime
    except OSError:  # removed meanwhile
        written = 0.0
    return Entry(folder, int(match[2]), condition, _num_bytes(folder), written, problem, is_latest, state)


def _condition(folder: Path, match: "re.Match[str]", checksums: bool) -> tuple[Condition, str]:
    if match[1]:
        return "unfinished", ""
    if match[3]:
        return "renamed", ""
    try:
        # For an incomplete checkpoint, `verify` names the missing file before it reads any.
        if checksums or not looks_complete(folder):
            verify(folder)
    except UserError as error:
        return "damaged", str(error)
    return ("verified" if checksums else "complete"), ""


def _latest(parent: Path) -> str:
    try:
        return read_text(parent / LATEST).strip()
    except (OSError, ValueError):
        return ""


def _num_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total
