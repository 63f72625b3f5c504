"""The folder of the stub libraries, which every process on a null GPU loads."""

import tempfile
from pathlib import Path

import pytest

from nullgpu import build as builder
from nullgpu.build import Unavailable, build


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name can be guessed, so another user may have made it first."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(builder, "_wheels", lambda: None)
    monkeypatch.setattr(builder, "_fingerprint", lambda wheels: "0")
    monkeypatch.setattr(builder, "_build", lambda wheels, folder: (folder / "libcuda.so.1").touch())
    folder = build()
    assert folder.parent == tmp_path and build() == folder
    folder.chmod(0o777)
    with pytest.raises(Unavailable, match="can be written by others; set TMPDIR to a folder of your own"):
        build()
    folder.chmod(0o700)
    real = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(real)
    with pytest.raises(Unavailable, match="can be written by others"):
        build()
