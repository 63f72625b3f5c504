"""The paths in the run directory. All code that reads or writes one takes the paths from here."""

from dataclasses import dataclass
from pathlib import Path

from tolktrain.config import Config

ROLLBACKS_FILE = "rollbacks.jsonl"  # also in copies of checkpoints


@dataclass(frozen=True)
class RunPaths:
    """The paths of one run."""

    root: Path

    @classmethod
    def of(cls, config: Config) -> "RunPaths":
        """The paths of the run of this configuration."""
        return cls(Path(config.run.dir) / config.run.name)

    @property
    def config(self) -> Path:
        """Resolved configuration of the latest start. A directory without it is not a run directory."""
        return self.root / "config.yaml"

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's entries that the run keeps (`runs.deepspeed_entries`)."""
        return self.root / "deepspeed.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per step and per validation (`runs.metrics`)."""
        return self.root / "metrics.jsonl"

    @property
    def rollbacks(self) -> Path:
        """One JSON object per rollback (`runs.rollbacks`)."""
        return self.root / ROLLBACKS_FILE

    @property
    def changes(self) -> Path:
        """One JSON object per change of the configuration (`runs.changes`)."""
        return self.root / "changes.jsonl"

    @property
    def initial_weights(self) -> Path:
        """The weights that the run has begun from (`runs.initial_weights`); absent if they were random."""
        return self.root / "initial_weights.json"

    @property
    def preference_reference(self) -> Path:
        """What a frozen reference says of preferences (`runs.preference_reference`); absent without such a stage."""
        return self.root / "preference_reference.jsonl"

    @property
    def needed_to_resume(self) -> tuple[Path, ...]:
        """The files that a resumed run reads in addition to a checkpoint."""
        before_training = (self.initial_weights, self.preference_reference)
        return self.config, self.deepspeed, self.metrics, self.rollbacks, self.changes, *before_training

    @property
    def heartbeat(self) -> Path:
        """The current state of the run (`cluster.heartbeat`)."""
        return self.root / "heartbeat.json"

    @property
    def lease(self) -> Path:
        """Folder of the files that say which job may write the run directory (`runs.lease`)."""
        return self.root / "lease"

    @property
    def logs(self) -> Path:
        """Folder of the logs, one file per rank."""
        return self.root / "logs"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints (`checkpoint.store`)."""
        return self.root / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Result of `tolktrain evaluate`."""
        return self.root / "evaluation.json"

    @property
    def choices(self) -> Path:
        """Scores of the trials of the choice between continuations (`evaluate.choice_file`)."""
        return self.root / "choices.jsonl"

    @property
    def benchmarks(self) -> Path:
        """Result of `tolktrain evaluate --benchmarks`."""
        return self.root / "benchmarks.json"

    @property
    def text_tasks(self) -> Path:
        """Result of `tolktrain evaluate --text-tasks`."""
        return self.root / "text_tasks.json"

    @property
    def generation(self) -> Path:
        """Result of `tolktrain evaluate --generation`."""
        return self.root / "generation.json"

    @property
    def answers(self) -> Path:
        """Result of `tolktrain evaluate --answers`; recordings and all answers are in the same folder."""
        return self.root / "answers" / "answers.json"

    @property
    def scores(self) -> Path:
        """Folder of the score files of benchmarks (`evaluate.score_files`), text tasks and generated speech."""
        return self.root / "scores"

    @property
    def analysis(self) -> Path:
        """Result of `tolktrain analyze`; figures are in the same folder."""
        return self.root / "analysis" / "analysis.json"

    @property
    def comparison(self) -> Path:
        """Result of `tolktrain compare` with `--output RUN/comparison`."""
        return self.root / "comparison" / "compare.json"

    @property
    def sweep(self) -> Path:
        """Table of the ablations that the run is one of (`benchmark.ablations`)."""
        return self.root.parent / "table.json"

    @property
    def samples(self) -> Path:
        """Folder that `tolktrain generate` writes."""
        return self.root / "samples"

    @property
    def sample_index(self) -> Path:
        """Descriptions of the files of `samples`."""
        return self.samples / "samples.json"

    @property
    def report(self) -> Path:
        """Page of `tolktrain report`."""
        return self.root / "report.html"

    def log(self, rank: int) -> Path:
        """Log file of a rank."""
        return self.logs / f"rank-{rank:05d}.log"
