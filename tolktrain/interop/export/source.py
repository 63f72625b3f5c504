"""What is exported: a run or a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.interop.weights import is_checkpoint
from tolktrain.runs.paths import RunPaths


@dataclass(frozen=True)
class ExportSource:
    """A run with its configuration, or a checkpoint, whose run is looked for around it."""

    folder: Path
    step: int | None
    run_dir: Path | None  # with a configuration
    config: Config | None

    @classmethod
    def of(cls, folder: Path, step: int | None = None) -> "ExportSource":
        """Raises UserError if the configuration of the run cannot be read."""
        candidate = folder.resolve().parents[1] if is_checkpoint(folder) else folder
        file = RunPaths(candidate).config
        if not file.is_file():
            return cls(folder, step, None, None)
        return cls(folder, step, candidate, load_config(file))
