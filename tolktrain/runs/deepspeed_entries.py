"""deepspeed.json in the run directory: the entries of the file that `deepspeed.config` named when the run began.

All later starts use these entries, even if that file has changed. The settings that the latest start has resolved from
them are also written, for information.
"""

import json
from pathlib import Path

from tolktrain.config.deepspeed import DeepSpeedFile, DeepSpeedSettings
from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json, read_text
from tolktrain.files.writing import replace_file

_LARGEST_BYTES = 4 << 20


def read_kept_entries(path: Path) -> DeepSpeedFile | None:
    """The entries that a run keeps in `path`; None for a run of an older release, which kept none.

    Raises UserError if deepspeed.json cannot be read.
    """
    try:
        content = parse_json(read_text(path, _LARGEST_BYTES))
        name, entries = content["config"], content["entries"]
        if not isinstance(name, str | None) or not isinstance(entries, dict):
            raise ValueError("config must be a path or null, entries a JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it holds the DeepSpeed settings of the run:"
            " restore it, delete it to read deepspeed.config again, or start again with run.restart=true"
        ) from None
    return DeepSpeedFile(name, entries)


def write_kept_entries(path: Path, file: DeepSpeedFile, resolved: DeepSpeedSettings) -> None:
    """Write the entries and the settings resolved from them, atomically."""
    content = {"config": file.path, "entries": file.entries, "resolved": resolved.entries}
    replace_file(path, json.dumps(content, indent=2) + "\n")


def is_same_file(kept: str | None, named: str | None) -> bool:
    """Whether `deepspeed.config` names the file that the kept entries were read from.

    A missing file may have another path now, because relative paths of missing files are resolved from the working
    directory. So two missing files of the same name count as the same.
    """
    if kept is None or named is None or kept == named:
        return kept == named
    old, new = Path(kept), Path(named)
    return old.name == new.name and not old.exists() and not new.exists()
