"""`tolktrain evaluate`: measure the latest valid checkpoint of a run on its held-out sets."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress as Mark
from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.batch import Batch
from tolktrain.data.checks import check_data
from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.data.strategies import DISPLAY_ORDER, STRATEGIES, require_record
from tolktrain.errors import UserError
from tolktrain.evaluate.baselines import Baselines, fit_baselines
from tolktrain.evaluate.choice_file import write_choices
from tolktrain.evaluate.choices import DIRECTIONS, TrialScores, draw_trials, score_trials
from tolktrain.evaluate.losses import heldout_losses
from tolktrain.evaluate.scorer import Scorer
from tolktrain.evaluate.scoring import Share, TokenNll
from tolktrain.evaluate.targets import targets
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.interop.trained import load_trained
from tolktrain.parallel.layout import initialize
from tolktrain.runs.paths import RunPaths
from tolktrain.vocabulary import Vocabulary

FORMAT = 1

_LAYER_STRATEGIES: tuple[Strategy, ...] = ("interleaved", "speech")
_LAYER_SEQUENCES = 32
_LONGEST_WAIT = timedelta(days=2)  # for another rank; the watchdog ends all ranks if one makes no progress

logger = logging.getLogger(__name__)


def evaluate(run_dir: str | Path, overrides: Sequence[str] = (), mark: Mark | None = None) -> dict[str, Any]:
    """Evaluate a run, or a folder of weights with `overrides` (`load_trained`), and write evaluation.json and
    choices.jsonl into the folder; returns the content of the first.

    Run by several processes (torchrun, srun), each scores a part of the batches; the first one writes. The result does
    not depend on their number. `mark` is where this rank's progress is reported, for its watchdog.

    Keys: `format`, `run`, `step`, `stage`, `tokens` (None for weights), `settings` (see `Config.follow_up_settings`),
    `device`,
    `parameters` (per group and `total`), `bigram` (training set and weights), `losses` (a row per held-out set and
    strategy, see `heldout_losses`), `choices` (a row per set and direction, see `TrialScores.summary`), `layers`
    (pooling weights, see `Scorer.layers`), `targets`, `seconds`.

    Raises UserError when the run has no checkpoint, a data set is missing, or no held-out set is configured.
    """
    begin = time.monotonic()
    environment = ProcessEnvironment.detect()
    environment.export()
    mark = mark or Mark()
    mark.at("joining the other processes")
    initialize(timeout=_LONGEST_WAIT)
    mark.at("loading the model")
    model, config, state = load_trained(run_dir, overrides=overrides)
    if not config.evaluation.heldout_sets:
        raise UserError(
            "evaluation.heldout_sets is empty; name the held-out data sets of data.sets that evaluation shall use"
        )
    vocabulary = check_data(config, model.architecture.text_vocab_size, verify_files=False)
    progress = spinner()
    progress.disable = environment.rank != 0
    with progress:
        share = Share(environment.rank, environment.world_size, mark.touch)
        evaluation = _Evaluation(config, vocabulary, Scorer(model), progress, share, mark)
        result = {
            "format": FORMAT,
            "run": config.run.name,
            "step": int(state.get("step") or 0),
            "stage": _stage_name(config, state),
            "tokens": _tokens(config, state),
            "settings": config.follow_up_settings(),
            "device": evaluation.scorer.device_name,
            "parameters": evaluation.scorer.parameters(),
            **evaluation.measure(),
        }
    result["targets"] = targets(result["losses"], result["choices"])
    result["seconds"] = round(time.monotonic() - begin, 2)
    if environment.rank != 0:
        return result
    paths = RunPaths(Path(run_dir))
    header = {name: result[name] for name in ("run", "step")}
    write_choices(paths.choices, header | {"tokenizers": vocabulary.tokenizers}, evaluation.scored)
    replace_file(paths.evaluation, json.dumps(result, indent=2) + "\n")
    return result


class _Evaluation:
    """The measurements, one after the other, with a line of progress."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        scorer: Scorer,
        progress: Progress,
        share: Share,
        mark: Mark,
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.scorer = scorer
        self.scored: list[tuple[str, str, TrialScores]] = []  # data set, direction, trials
        self._share, self._mark = share, mark
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        trained = {strategy for stage in config.train.stages for strategy in stage.mixture}
        if not config.train.stages:  # nobody knows what weights were trained on
            trained = set(DISPLAY_ORDER)
        self._strategies = [name for name in DISPLAY_ORDER if STRATEGIES[name].always_evaluated or name in trained]

    def measure(self) -> dict[str, Any]:
        """`bigram`, `losses`, `choices` and `layers`."""
        baselines = self._baselines()
        losses = [
            {"set": name, "strategy": strategy} | self._losses(name, strategy, baselines)
            for name in self.config.evaluation.heldout_sets
            for strategy in self._strategies
            if self._serves(name, strategy)
        ]
        choices = [row for name in self.config.evaluation.heldout_sets for row in self._choices(name, baselines)]
        return {
            "bigram": self._describe(baselines),
            "losses": losses,
            "choices": choices,
            "layers": self._layers(),
        }

    def _baselines(self) -> Baselines | None:
        name = self.config.evaluation.train_set
        if name is None:
            logger.warning("evaluation.train_set is not set: no bigram baselines")
            return None
        self._say(f"bigram baselines on {name}")
        records = open_records(self.config.data.sets[name])
        number = min(len(records), self.config.evaluation.baseline_records)
        return fit_baselines((records[index] for index in range(number)), self.vocabulary)

    def _describe(self, baselines: Baselines | None) -> dict[str, Any] | None:
        """The weights of bigram, unigram and uniform distribution."""
        if baselines is None:
            return None
        return {
            "train_set": self.config.evaluation.train_set,
            "text_weights": baselines.text.weights if baselines.text else None,
            "speech_weights": [bigram.weights for bigram in baselines.speech] if baselines.speech else None,
        }

    def _losses(self, name: str, strategy: Strategy, baselines: Baselines | None) -> dict[str, Any]:
        self._say(f"held-out losses: {strategy} on {name}")
        batches = self._batches(name, strategy, self.config.evaluation.sequences)
        return heldout_losses(batches, self.scorer.token_nll, baselines, self._share)

    def _choices(self, name: str, baselines: Baselines | None) -> list[dict[str, Any]]:
        if not self._serves(name, "interleaved"):
            return []
        settings, train = self.config.evaluation, self.config.train
        trials = draw_trials(
            open_records(self.config.data.sets[name]),
            settings.choices,
            self.vocabulary,
            settings.prompt_words,
            settings.continuation_words,
        )
        if not trials:
            logger.warning(
                "%s: no two records have whole utterances of %d words (evaluation.prompt_words) with %d more"
                " (evaluation.continuation_words) after them; no choices",
                name,
                settings.prompt_words,
                settings.continuation_words,
            )
        scorers: dict[str, TokenNll] = {"model": self.scorer.token_nll}
        if baselines is not None and baselines.can_score(text=True, speech=True):
            scorers |= {"unigram": baselines.unigrams.token_nll, "bigram": baselines.token_nll}
        rows = []
        for direction in DIRECTIONS if trials else ():
            self._say(f"true against random continuation: {direction.replace('_', ' ')} on {name}")
            batch_tokens = train.micro_batch_size * train.sequence_length
            scored = score_trials(
                trials, direction, scorers, self.vocabulary, train.sequence_length, batch_tokens, self._share
            )
            if scored is not None:
                self.scored.append((name, direction, scored))
                rows.append({"set": name, "direction": direction} | scored.summary())
        return rows

    def _layers(self) -> dict[str, Any] | None:
        self._say("layer-pooling weights")
        for strategy in _LAYER_STRATEGIES:
            for name in self.config.evaluation.heldout_sets:
                if self._serves(name, strategy):
                    return self.scorer.layers(list(self._batches(name, strategy, _LAYER_SEQUENCES)))
        return None

    def _batches(self, name: str, strategy: Strategy, count: int) -> Iterator[Batch]:
        train = self.config.train
        return validation_batches(
            self.config.data.sets[name],
            strategy,
            count,
            vocabulary=self.vocabulary,
            sequence_length=train.sequence_length,
            interleaving=self.config.data.interleaving,
            micro_batch_size=train.micro_batch_size,
        )

    def _serves(self, name: str, strategy: Strategy) -> bool:
        """Whether the records of the set have what the strategy needs."""
        records = open_records(self.config.data.sets[name])
        described = records.info.conversations
        if described is not None and (strategy == "preference" or strategy not in described.strategies):
            return False  # a mean over chosen and rejected answers says nothing
        try:
            require_record(strategy, records[0], name)
        except UserError:
            return False
        return True

    def _say(self, what: str) -> None:
        self._mark.at(what)
        self._progress.update(self._task, description=what)


def _tokens(config: Config, state: dict[str, Any]) -> int | None:
    """Positions that the model was trained on; None for a folder of weights, whose batches are not known."""
    if not config.train.stages:
        return None
    return int(state.get("step", 0)) * config.train.global_batch_size * config.train.sequence_length


def _stage_name(config: Config, state: dict[str, Any]) -> str:
    if not config.train.stages:
        return str(state.get("stage_name") or "")
    index = int(state.get("stage", 0))
    return config.train.stages[min(index, len(config.train.stages) - 1)].name
