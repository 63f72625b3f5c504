"""Begins a run from trained weights (`checkpoint.init_from`)."""

import logging
from collections.abc import Mapping
from pathlib import Path

from tolktrain.config import Config
from tolktrain.data.checks import TEXT_TOKENIZER_FILE
from tolktrain.errors import UserError
from tolktrain.files.reading import file_sha256
from tolktrain.interop.formats.find import describe_weights
from tolktrain.interop.formats.format import Weights
from tolktrain.interop.initial_weights import KEY, InitialWeights
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.initial_weights import InitialWeightsRecord, read_record, write_record
from tolktrain.runs.paths import RunPaths

logger = logging.getLogger(__name__)


class Beginning:
    """How a run begins, unless it continues from a checkpoint of its own."""

    def __init__(self, config: Config, run_dir: Path, tokenizers: Mapping[str, str | None], is_new: bool) -> None:
        """`tokenizers` are those of the data; `is_new` says that a record of an earlier start does not count."""
        self._config = config
        self._paths = RunPaths(run_dir)
        self._tokenizers = tokenizers
        self._is_new = is_new
        self._taken: InitialWeights | None = None

    @property
    def lines(self) -> list[str]:
        """What the run begins from, for the terminal; empty for random weights and a resumed run."""
        return [] if self._taken is None else self._taken.describe()

    @property
    def digest(self) -> str | None:
        """SHA-256 of the weights that the run begins from; None for random weights."""
        return None if self._taken is None else self._taken.weights.digest

    def compare_tokenizer(self, backbone: Path) -> None:
        """Warn if the tokenizer in the folder of a backbone is not that of the data."""
        file, expected = backbone / TEXT_TOKENIZER_FILE, self._tokenizers.get("text")
        if expected is None or not file.is_file():
            return
        found = file_sha256(file)
        if found != expected:
            logger.warning(
                "model.backbone: %s (sha256 %s) is not the tokenizer that the data was made with (sha256 %s): if it"
                " gives texts other ids, the backbone reads the data as noise; prepare the data with this tokenizer",
                file, found, expected,
            )  # fmt: skip

    def weights_for(self, model: SmolTolk, layout: Layout) -> InitialWeights | None:
        """The weights that this model begins from; None for random ones. Collective.

        Raises UserError if there are no such weights, they are damaged, or they do not fit.
        """
        weights = on_rank_zero(layout.rank, self._find)
        if weights is None:
            return None
        self._taken = InitialWeights.of(weights, model, layout, self._config, self._tokenizers)
        for line in self._taken.describe():
            logger.info("%s", line)
        for note in self._taken.fit.notes:
            logger.warning("%s: %s", KEY, note)
        return self._taken

    def write(self) -> None:
        """Record in the run directory what the run has begun from; on rank 0, after `OpenRun.begin`."""
        configured = self._configured()
        if self._taken is not None:
            assert configured is not None
            write_record(self._paths.initial_weights, self._taken.record(configured))
        elif self._is_new:
            self._paths.initial_weights.unlink(missing_ok=True)
        self._is_new = False

    def _configured(self) -> str | None:
        """The folder that the run begins from: as configured now, or, if the key was dropped, at its first start."""
        if self._config.checkpoint.init_from is not None:
            return self._config.checkpoint.init_from
        record = self._record()
        return None if record is None else record.init_from

    def _record(self) -> InitialWeightsRecord | None:
        return None if self._is_new else read_record(self._paths.initial_weights)

    def _find(self) -> Weights | None:
        configured, record = self._configured(), self._record()
        if configured is None:
            return None
        if Path(configured).resolve().is_relative_to(self._paths.root.resolve()):
            raise UserError(
                f"{KEY} names {configured}, which is in the run directory of this run; give this run another run.name"
            )
        if record is not None and record.init_from == configured:
            # A run may have newer checkpoints by now; an interrupted start begins from the same one again.
            if Path(record.folder).is_dir():
                return describe_weights(Path(record.folder), KEY)
            logger.warning(
                "%s: %s, from which the run had begun, is gone; it begins from %s again",
                KEY, record.folder, configured,
            )  # fmt: skip
        return describe_weights(Path(configured), KEY)


def refuse_other_beginning(config: Config, run_dir: Path, layout: Layout) -> None:
    """Refuse `checkpoint.init_from` for a run that has checkpoints, unless the run has begun from these weights.

    Collective. Such a run continues from its own checkpoints, and the key would silently have no effect.

    Raises UserError.
    """
    asked = config.checkpoint.init_from

    def check() -> None:
        record = read_record(RunPaths(run_dir).initial_weights)
        if asked is None or (record is not None and record.init_from == asked):
            return
        if record is not None and describe_weights(Path(asked), KEY).digest == record.digest:  # it was moved
            return
        before = "random weights or a backbone" if record is None else record.init_from
        raise UserError(
            f"{KEY} is {asked}, but {run_dir} has begun from {before} and continues from its own checkpoints; remove"
            f" {KEY}, give a new run another run.name, or start again from step 0 with run.restart=true"
        )

    on_rank_zero(layout.rank, check)
