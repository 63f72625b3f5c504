"""Losses on held-out records."""

import logging
from collections.abc import Callable, Sequence

from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.batch import Batch
from tolktrain.runs.metrics import Line
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun
from tolktrain.train.step_metrics import preference_figures

logger = logging.getLogger(__name__)

Batches = Callable[[str, Strategy], Sequence[Batch]]
AfterValidation = Callable[[StageRun], None]


class Validation(NoCallback):
    """Every `train.validation.every_steps` and at the end of a stage: the loss of each strategy on each data set."""

    def __init__(
        self, config: Config, batches: Batches, metrics: MetricsLog, after: AfterValidation | None = None
    ) -> None:
        """`batches` gives this rank's batches of a data set in a strategy, always the same ones. `after` is called
        after a validation of a run that is to go on."""
        self._config = config.train.validation
        self._batches = batches
        self._metrics = metrics
        self._after = after
        self._unscored: set[str] = set()  # of which there was a warning

    def on_step(self, run: StageRun) -> None:
        """Validate if it is time to."""
        if self._config.sets and (run.step % self._config.every_steps == 0 or run.stage_complete):
            run.engine.model.eval()
            for dataset in self._config.sets:
                for strategy in self._strategies(run):
                    run.progress.at(f"validation of {strategy} on {dataset}")
                    self._metrics.write(
                        {"step": run.step, "stage": run.plan.name, **self._losses(run, dataset, strategy)}
                    )
            run.engine.model.train()
            if self._after is not None and not run.stop:
                self._after(run)

    def _strategies(self, run: StageRun) -> list[Strategy]:
        """Preferences need the reference of a stage of preferences."""
        compares = run.plan.config.has_preferences
        return [strategy for strategy in self._config.strategies if compares or strategy != "preference"]

    def _losses(self, run: StageRun, dataset: str, strategy: Strategy) -> Line:
        """Nats per scored position, of both modalities apart where both are scored."""
        result = run.engine.loss_sums(self._batches(dataset, strategy))
        key = f"validation.{strategy}.{dataset}"
        if not result.counts.num_scored and key not in self._unscored:
            self._unscored.add(key)
            logger.warning(
                "%s.loss is 0 because none of the positions is scored; raise train.sequence_length, or remove %s from"
                " train.validation.strategies",
                *(key, strategy),
            )
        line: Line = {f"{key}.loss": result.loss(entropy_weight=0.0)}
        if result.preference is not None:
            figures = preference_figures(result.preference)
            return line | {f"{key}.{name}": value for name, value in figures.items()}
        if result.counts.num_text and result.counts.num_speech:
            line |= {f"{key}.text_loss": result.text_loss, f"{key}.speech_loss": result.speech_loss}
        return line
