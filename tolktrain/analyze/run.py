"""`tolktrain analyze`: compare how a trained model represents the same words as text and as speech."""

import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from tolktrain.analyze.layers import layer_names, text_logits
from tolktrain.analyze.measures.base import Numbers, Task
from tolktrain.analyze.measures.registry import MEASURES
from tolktrain.analyze.moments import PairMoments
from tolktrain.analyze.observe import Observation
from tolktrain.analyze.sample import Sample, draw_sample
from tolktrain.analyze.start import starting_model
from tolktrain.config import Config
from tolktrain.data.checks import check_data
from tolktrain.data.folder import open_records
from tolktrain.data.sequences import IntArray
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.evaluate.scorer import Scorer
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.interop.trained import load_trained
from tolktrain.interop.weights import is_weights
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.report.analysis import parse_analysis, standalone_figures
from tolktrain.runs.paths import RunPaths
from tolktrain.vocabulary import Vocabulary

FORMAT = 1
TRAINED, START = "trained", "start"

_MOST_DIMENSIONS = 64  # of subspaces, by default
_DIMENSIONS_OF_WIDTH = 16  # D / k, by default

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is analysed."""

    words: int = 4000
    spans: int = 1000
    dataset: str | None = None  # of data.sets; the first of evaluation.heldout_sets if None
    step: int | None = None  # of the checkpoint; the latest valid one if None
    seed: int | None = None  # of the sample and the controls; run.seed if None
    layers: tuple[int, ...] | None = None  # of the backbone, from 1; all if None
    measures: tuple[str, ...] | None = None  # all if None
    dimensions: int | None = None  # k of subspaces; D / 16, at most 64, if None
    device: str | None = None  # cpu or cuda; a GPU if there is one, if None
    against_start: bool = True  # also analyse the model before training
    batch_tokens: int | None = None  # positions of a batch; the run's micro batch if None


def analyze(run_dir: str | Path, options: Options, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Analyse a run, or a folder of weights with `overrides` (`load_trained`), and write analysis/analysis.json and its
    figures into the folder.

    Returns:
        The content of analysis.json: `format`, `run`, `step`, `device`; `settings`, the resolved options; `sample`
        (`set`, `records`, `passages`, `words`, `types`, `spans`); `layers`, their names in order; `start`, where the
        weights before training are from, and `start_problem`, why that model is missing, both None if it was not asked
        for; `models`, by `trained` and `start`, the result of each measure (see its file); `measures`, by name, the
        title, the curves (`panels`) and the columns of the table (`headline`); `seconds`.

    Raises:
        UserError: the run has no checkpoint, the data set has no aligned words, an option does not fit, or a state is
            not finite.
    """
    begin = time.monotonic()
    run_dir = Path(run_dir)
    names = _measure_names(options)
    model, config, state = load_trained(run_dir, options.step, overrides)
    architecture = model.architecture
    layers = layer_names(architecture, options.layers)
    dataset = _dataset(config, options)
    vocabulary = check_data(config, architecture.text_vocab_size, verify_files=False)
    seed = config.run.seed if options.seed is None else options.seed
    with spinner() as progress:
        task_id = progress.add_task("drawing words", total=None)
        sample = _sample(config, dataset, vocabulary, options, seed)
        k = _dimensions(options, architecture.hidden_size, sample.num_words)
        analysis = _Analysis(config, vocabulary, sample, layers, names, k, seed, options, progress, task_id)
        models = {TRAINED: analysis.measure(model, "trained model")}
        device = analysis.device_name
        del model
        gc.collect()
        source, problem = None, None
        if options.against_start:
            try:
                _require_run(run_dir)
                start, source = starting_model(run_dir, config, architecture, vocabulary.tokenizers)
            except UserError as error:
                problem = str(error)
                logger.warning("the model before training cannot be analysed: %s", problem)
            else:
                models[START] = analysis.measure(start, "model before training")
    result: dict[str, Any] = {
        "format": FORMAT,
        "run": config.run.name,
        "step": int(state.get("step") or 0),
        "device": device,
        "settings": {"words": options.words, "spans": options.spans, "seed": seed, "dimensions": k},
        "sample": _described(sample, dataset),
        "layers": layers,
        "start": source,
        "start_problem": problem,
        "measures": {name: _measure_described(name) for name in names},
        "models": models,
        "seconds": round(time.monotonic() - begin, 2),
    }
    _write(RunPaths(run_dir), result)
    return result


class _Analysis:
    """The measures of one model after the other, on the same sample."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        sample: Sample,
        layers: list[str],
        names: list[str],
        dimensions: int,
        seed: int,
        options: Options,
        progress: Progress,
        task: TaskID,
    ) -> None:
        self.device_name = ""
        self._vocabulary = vocabulary
        self._sample = sample
        self._layers = layers
        self._names = names
        self._dimensions = dimensions
        self._seed = seed
        self._device = options.device
        train = config.train
        self._batch_tokens = options.batch_tokens or train.micro_batch_size * train.sequence_length
        self._progress = progress
        self._task = task

    def measure(self, model: SmolTolk, what: str) -> dict[str, Numbers]:
        """The result of each measure."""
        scorer = Scorer(model, self._device)
        self.device_name = scorer.device_name
        moments = {layer: PairMoments() for layer in self._layers}
        task = Task(
            sample=self._sample,
            architecture=model.architecture,
            layers=tuple(self._layers),
            dimensions=self._dimensions,
            seed=self._seed,
            moments=moments,
            text_logits=lambda layer, hidden: text_logits(model, layer, hidden),
            static_weights=scorer.static_weights(),
        )
        measures = {name: MEASURES[name](task) for name in self._names}
        with torch.no_grad():
            Observation(model, task, measures, moments, scorer.device, self._vocabulary.text_eos, self._say(what)).run(
                self._batch_tokens
            )
            found = {}
            for name, measure in measures.items():
                self._progress.update(self._task, description=f"{what}: {measure.title}")
                found[name] = measure.result()
        return found

    def _say(self, what: str) -> Callable[[int, int], None]:
        def say(done: int, total: int) -> None:
            self._progress.update(self._task, description=f"{what}: sequence {done:,} of {total:,}")

        return say


def _require_run(folder: Path) -> None:
    """Raise UserError for a folder of weights."""
    if is_weights(folder):
        raise UserError(f"{folder} is a folder of weights, which does not hold the weights before training")


def _measure_names(options: Options) -> list[str]:
    chosen = options.measures or tuple(MEASURES)
    for name in chosen:
        if name not in MEASURES:
            raise UserError(f"--measures: unknown measure {name!r}; known are {', '.join(MEASURES)}")
    return [name for name in MEASURES if name in chosen]


def _dataset(config: Config, options: Options) -> str:
    name = options.dataset or next(iter(config.evaluation.heldout_sets), None)
    if name is None:
        raise UserError("evaluation.heldout_sets is empty; name a data set of the configuration with --set")
    if name not in config.data.sets:
        raise UserError(f"--set {name}: data.sets does not define it; it defines {', '.join(sorted(config.data.sets))}")
    return name


def _sample(config: Config, dataset: str, vocabulary: Vocabulary, options: Options, seed: int) -> Sample:
    spell = None
    if config.data.text_tokenizer is not None:
        tokenizer = load_text_tokenizer(config.data.text_tokenizer).tokenizer

        def spell(ids: IntArray) -> str:
            return str(tokenizer.decode(ids.tolist()))

    records = open_records(config.data.sets[dataset])
    try:
        return draw_sample(
            records,
            vocabulary,
            options.words,
            options.spans,
            config.train.sequence_length,
            seed,
            spell,
            config.data.interleaving,
        )
    except UserError as error:
        raise UserError(f"data.sets.{dataset}: {error}") from None


def _dimensions(options: Options, width: int, num_words: int) -> int:
    k = options.dimensions
    if k is None:
        k = max(1, min(_MOST_DIMENSIONS, width // _DIMENSIONS_OF_WIDTH))
    if not 1 <= k < min(width, num_words):
        raise UserError(
            f"--dimensions: there are no subspaces of {k} dimensions in {width} dimensions with {num_words} words; use"
            f" 1 to {min(width, num_words) - 1}"
        )
    return k


def _described(sample: Sample, dataset: str) -> dict[str, Any]:
    return {
        "set": dataset,
        "records": sample.num_records,
        "passages": len(sample.passages),
        "words": sample.num_words,
        "types": len(set(sample.types.tolist())),
        "spans": len(sample.spans),
    }


def _measure_described(name: str) -> dict[str, Any]:
    measure = MEASURES[name]
    panels = [
        {
            "title": panel.title,
            "scale": panel.scale,
            "curves": [
                {"key": c.key, "label": c.label, "colour": c.colour, "is_control": c.is_control} for c in panel.curves
            ],
        }
        for panel in measure.panels
    ]
    headline = [{"key": key, "label": label, "scale": scale} for key, label, scale in measure.headline]
    return {"title": measure.title, "panels": panels, "headline": headline}


def _write(paths: RunPaths, result: dict[str, Any]) -> None:
    paths.analysis.parent.mkdir(exist_ok=True)
    replace_file(paths.analysis, json.dumps(result, indent=1, allow_nan=False) + "\n")
    figures = standalone_figures(parse_analysis(result, paths.analysis))
    for name in MEASURES:
        file = paths.analysis.parent / f"{name}.svg"
        if name in figures:
            replace_file(file, figures[name])
        else:  # of an earlier analysis
            file.unlink(missing_ok=True)
