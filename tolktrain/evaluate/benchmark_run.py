"""`tolktrain evaluate --benchmarks`: score a trained model on benchmarks of speech language models."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress as Display

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.config.suite import BenchmarkConfig, SuiteConfig
from tolktrain.data.checks import check_data
from tolktrain.data.folder import open_records
from tolktrain.data.records import ASSISTANT, USER, Record
from tolktrain.data.text_tokenizer import TextTokenizer, encode_words, load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.evaluate.answers import Answerer, remark_of, rows_of, write_answers
from tolktrain.evaluate.baselines import Baselines, fit_baselines
from tolktrain.evaluate.benchmarks.base import (
    Audio,
    AudioFile,
    Benchmark,
    Found,
    ItemSet,
    ParquetAudio,
    Problems,
    Segment,
    TokenIds,
)
from tolktrain.evaluate.benchmarks.registry import BENCHMARKS
from tolktrain.evaluate.item_sequences import ItemSequence, Part, build, build_exchange, score_items
from tolktrain.evaluate.recordings import encode_recordings
from tolktrain.evaluate.rules import Context, ItemScore, Rule
from tolktrain.evaluate.score_files import SetScores, collect, needed_contexts, write_scores, write_submission
from tolktrain.evaluate.scorer import Scorer
from tolktrain.evaluate.scoring import Share, TokenNll
from tolktrain.evaluate.tables import measured, pair_points
from tolktrain.evaluate.unit_cache import UnitCache, default_cache
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.interop.trained import load_trained
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import initialize
from tolktrain.runs.paths import RunPaths
from tolktrain.units.base import Frames
from tolktrain.units.load import describe_speech_tokenizer, load_speech_tokenizer
from tolktrain.vocabulary import ROLE_TOKEN, Vocabulary

FORMAT = 1
SUBMISSION = "zerospeech"  # folder below that of the scores, with one folder per benchmark

# A rank may wait for as long as another one encodes or scores. The watchdog ends all ranks if one of them fails, or
# makes no progress.
_LONGEST_WAIT = timedelta(days=2)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """A benchmark of the suite, as read."""

    config: BenchmarkConfig
    benchmark: Benchmark
    found: Found

    def rules(self, found: ItemSet) -> list[Rule]:
        """The rules of a set, the main one first."""
        return [Rule.parse(name) for name in self.config.rules or found.rules]


def evaluate_benchmarks(
    run_dir: str | Path, suite: SuiteConfig, progress: Progress | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Score the benchmarks of a suite, and write benchmarks.json and scores/*.jsonl into the run's folder.

    Run by several processes (torchrun, srun), each encodes and scores a part; the first one writes. The result does not
    depend on their number.

    Args:
        run_dir: of the run.
        suite: its benchmarks.
        progress: where this rank's progress is reported, for its watchdog.

    Returns:
        The content of benchmarks.json: `format`, `run`, `step`, `device`, `rows` (a row per benchmark, set, measure and
        rule: `benchmark`, `set`, `measure`, `rule`, `ties`, `pairs`, `ids`, `accuracy`, `low`, `high`, the accuracies
        of `unigram` and `bigram`, and `published` numbers of the same rule), `problems` per benchmark, `notes`,
        `longer_than_training` (items per benchmark), `seconds`.

    Raises:
        UserError: the run has no checkpoint; a benchmark cannot be read, or is incomplete and
            `suite.allow_incomplete` is false; an item cannot be scored.
    """
    begin = time.monotonic()
    environment = ProcessEnvironment.detect()
    environment.export()
    progress = progress or Progress()
    progress.at("joining the other processes")
    initialize(timeout=_LONGEST_WAIT)
    progress.at("reading the benchmarks")
    tasks = on_rank_zero(environment.rank, lambda: _read_tasks(suite))
    progress.at("loading the model")
    model, config, state = load_trained(run_dir, overrides=overrides)
    vocabulary = _vocabulary(config, model.architecture.text_vocab_size, state)
    display = spinner()
    display.disable = environment.rank != 0
    with display:
        paths, scorer = RunPaths(Path(run_dir)), Scorer(model)
        answerer = Answerer(scorer.model, config, state.get("tokenizers") or {})
        run = _Run(config, suite, vocabulary, scorer, answerer, environment, display, progress, paths)
        result: dict[str, Any] = {
            "format": FORMAT,
            "run": config.run.name,
            "step": int(state.get("step") or 0),
            "device": run.scorer.device_name,
            "rows": [],
            "problems": {},
            "notes": [],
            "longer_than_training": {},
        }
        for task in tasks:
            run.measure(task, result)
    result["seconds"] = round(time.monotonic() - begin, 2)
    if environment.rank == 0:
        replace_file(RunPaths(Path(run_dir)).benchmarks, json.dumps(result, indent=2) + "\n")
    return result


def _vocabulary(config: Config, text_vocab_size: int, state: Mapping[str, Any]) -> Vocabulary:
    """The ids of the run's data, or of the tokenizers of a folder of weights, which need not have data."""
    if config.data.sets:
        return check_data(config, text_vocab_size, verify_files=False)
    eos, tokenizers = 0, state.get("tokenizers") or {}
    if config.data.text_tokenizer is not None:
        eos = load_text_tokenizer(config.data.text_tokenizer).info.eos_id
    found = check_data(config, text_vocab_size, verify_files=False, text_eos=eos)
    return replace(found, text_tokenizer=tokenizers.get("text"), speech_tokenizer=tokenizers.get("speech"))


def _read_tasks(suite: SuiteConfig) -> list[_Task]:
    names = [entry.shown for entry in suite.benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the suite has two benchmarks named {twice}; give one of them another label")
    tasks = []
    for entry in suite.benchmarks:
        if entry.name not in BENCHMARKS:
            raise UserError(f"unknown benchmark {entry.name!r}; known are {', '.join(BENCHMARKS)}")
        benchmark = BENCHMARKS[entry.name]
        if not Path(entry.folder).is_dir():
            raise UserError(f"{entry.shown}: {entry.folder} is no folder; it should hold {benchmark.archive}")
        task = _Task(entry, benchmark, benchmark.read(Path(entry.folder)))
        for name in entry.rules:
            Rule.parse(name)
        _refuse_incomplete(task, task.found.problems, suite.allow_incomplete)
        if not any(found.pairs for found in task.found.sets):
            raise UserError(f"{entry.shown}: {entry.folder} holds no complete pair of {benchmark.archive}")
        tasks.append(task)
    return tasks


def _refuse_incomplete(task: _Task, problems: Problems, allowed: bool) -> None:
    sentence = problems.sentence(serious=True)
    if sentence and not allowed:
        raise UserError(
            f"{task.config.shown}: {sentence} in {task.config.folder}; get the files from their source again, or set"
            " allow_incomplete (--allow-incomplete) to leave out the pairs concerned"
        )
    for kind in (sentence, problems.sentence(serious=False)):
        if kind:
            logger.warning("%s: %s", task.config.shown, kind)


class _Run:
    """One model on one benchmark after the other."""

    def __init__(
        self,
        config: Config,
        suite: SuiteConfig,
        vocabulary: Vocabulary,
        scorer: Scorer,
        answerer: Answerer,
        environment: ProcessEnvironment,
        display: Display,
        progress: Progress,
        paths: RunPaths,
    ) -> None:
        self.config = config
        self.suite = suite
        self.vocabulary = vocabulary
        self.scorer = scorer
        self._answerer = answerer
        self._rank, self._world_size = environment.rank, environment.world_size
        self._display = display
        self._task = display.add_task("starting", total=None)
        self._progress = progress
        self._paths = paths
        self._batch_tokens = suite.batch_tokens or config.train.micro_batch_size * config.train.sequence_length
        self._text: TextTokenizer | None = None
        self._baselines: Baselines | None = None

    def measure(self, task: _Task, result: dict[str, Any]) -> None:
        """Score a benchmark, write its files, and add to the result."""
        label = task.config.shown
        units, problems = self._units(task)
        sets = [_without_unreadable(found, units) for found in task.found.sets]
        sets = [found for found in sets if found.pairs]
        if not sets:
            raise UserError(f"{label}: no pair is left whose items can be read; see the warnings")
        longer = 0
        by_scorer: dict[str, dict[str, SetScores]] = {}
        for found in sets:
            scores, longest = self._scores(task, found, units)
            longer += longest
            for scorer, found_scores in scores.items():
                by_scorer.setdefault(scorer, {})[found.name] = found_scores
        for found in sets:
            own = {scorer: scores[found.name] for scorer, scores in by_scorer.items() if found.name in scores}
            result["rows"] += self._rows(task, found, own)
        result["rows"] += self._answers(label, sets, units, result["notes"])
        result["problems"][label] = problems.counts
        result["notes"] += task.found.notes
        result["longer_than_training"][label] = longer
        if self._rank == 0:
            self._write(task, sets, by_scorer, result)

    def _write(
        self,
        task: _Task,
        sets: Sequence[ItemSet],
        by_scorer: Mapping[str, Mapping[str, SetScores]],
        result: Mapping[str, Any],
    ) -> None:
        label, folder = task.config.shown, self._paths.scores
        for scorer, scores in by_scorer.items():
            header = {"benchmark": task.benchmark.name, "run": result["run"], "step": result["step"], "scorer": scorer}
            header["tokenizers"] = self.vocabulary.tokenizers
            write_scores(folder / f"{label}{'' if scorer == 'model' else '.' + scorer}.jsonl", header, scores)
        for found in sets:
            main = task.rules(found)[0]
            write_submission(folder / SUBMISSION / label, found, by_scorer["model"][found.name].by_rule(main))

    def _answers(
        self, label: str, sets: Sequence[ItemSet], units: Mapping[Audio, Frames], notes: list[str]
    ) -> list[dict[str, Any]]:
        """Rows of the answers that the model generates, if the benchmark has questions; notes about them."""
        asked = [found for found in sets if found.questions]
        if asked and not self._answerer.can:
            notes.append(
                f"{label}: answers are not generated, because the model has no tokens of the roles user and assistant,"
                " or no text tokenizer; likelihoods are those of a continuation"
            )
            return []
        rows: list[dict[str, Any]] = []
        judged = {}
        for found in asked:
            what = f"{label}, {found.name}: answers"
            self._progress.at(what)
            share = Share(self._rank, self._world_size)
            own = judged[found.name] = self._answerer.answer(found, units, share, self._counter(what))
            rows += rows_of(label, found, own)
            notes.append(remark_of(label, found, own, self._answerer.form))
        if judged and self._rank == 0:
            write_answers(self._paths.scores / f"{label}.answers.jsonl", judged)
        return rows

    def _units(self, task: _Task) -> tuple[Mapping[Audio, Frames], Problems]:
        """Units of the benchmark's recordings, and all its problems."""
        sources = {
            segment.source
            for found in task.found.sets
            for parts in found.items.values()
            for segment in parts
            if isinstance(segment.source, (AudioFile, ParquetAudio))
        }
        if not sources:
            return {}, task.found.problems
        folder = self.config.data.speech_tokenizer
        if folder is None:
            raise UserError("data.speech_tokenizer is not set; recordings of benchmarks need the run's tokenizer")
        info = describe_speech_tokenizer(folder)
        expected = self.vocabulary.speech_tokenizer
        if expected is not None and info.sha256 != expected:
            raise UserError(
                f"{folder} is not the speech tokenizer of the run's data sets; set data.speech_tokenizer to theirs"
            )
        cache = UnitCache(
            Path(self.suite.unit_cache) if self.suite.unit_cache else default_cache(), info.sha256, info.num_codebooks
        )
        self._progress.at(f"encoding the recordings of {task.config.shown}")
        encoded = encode_recordings(
            sorted(sources, key=repr),
            lambda: load_speech_tokenizer(folder, str(self.scorer.device)),
            cache,
            self._rank,
            self._world_size,
            self._counter(f"{task.config.shown}: units"),
        )
        unreadable = Problems(unreadable=tuple(_named(source, why) for source, why in encoded.unreadable.items()))
        _refuse_incomplete(task, unreadable, self.suite.allow_incomplete)  # the same on every rank
        return encoded.units, task.found.problems + unreadable

    def _scores(self, task: _Task, found: ItemSet, units: Mapping[Audio, Frames]) -> tuple[dict[str, SetScores], int]:
        """Scores by scorer, and how many items are longer than the training sequences."""
        is_turn = self._has_turns(found)
        parts = {name: [self._part(segment, units, is_turn) for segment in item] for name, item in found.items.items()}
        scores: dict[str, list[ItemScore]] = {}
        longer: set[str] = set()
        for context in needed_contexts(task.rules(found)):
            items = [self._item(found, name, item, context) for name, item in parts.items()]
            longer |= {item.id for item in items if item.sequence.length > self.config.train.sequence_length + 1}
            for scorer, token_nll in self._scorers(items).items():
                what = f"{task.config.shown}, {found.name}: {scorer}"
                self._progress.at(f"scoring {what}")
                scored = score_items(
                    items,
                    context,
                    token_nll,
                    self.vocabulary,
                    self._batch_tokens,
                    self._rank,
                    self._world_size,
                    self._counter(what),
                )
                scores.setdefault(scorer, []).extend(scored)
        rules = [rule.name for rule in task.rules(found)]
        collected = {scorer: collect(found.pairs, scored, found.measures, rules) for scorer, scored in scores.items()}
        return collected, len(longer)

    def _item(self, found: ItemSet, name: str, parts: Sequence[Part], context: Context) -> ItemSequence:
        if self._has_turns(found):
            return build_exchange(name, parts, self.vocabulary)
        return build(name, parts, context, self.vocabulary)

    def _has_turns(self, found: ItemSet) -> bool:
        """Whether items are turns of a conversation, for whose roles the model has tokens."""
        roles = {ROLE_TOKEN.format(role) for role in (USER, ASSISTANT)}
        return found.is_exchange and roles <= set(self.vocabulary.special_tokens)

    def _scorers(self, items: Sequence[ItemSequence]) -> dict[str, TokenNll]:
        found: dict[str, TokenNll] = {"model": self.scorer.token_nll}
        baselines = self._fitted()
        modalities = {part.modality for item in items for part in item.parts}
        if baselines is not None and baselines.can_score("text" in modalities, "speech" in modalities):
            found |= {"unigram": baselines.unigrams.token_nll, "bigram": baselines.token_nll}
        return found

    def _fitted(self) -> Baselines | None:
        name = self.config.evaluation.train_set
        if self._baselines is None and name is not None:
            self._progress.at(f"counting n-grams of {name}")
            records = open_records(self.config.data.sets[name])
            number = min(len(records), self.config.evaluation.baseline_records)
            say = self._counter(f"n-grams of {name}")

            def counted() -> Iterator[Record]:
                for index in range(number):
                    say(index, number)
                    yield records[index]

            self._baselines = fit_baselines(counted(), self.vocabulary)
        return self._baselines

    def _part(self, segment: Segment, units: Mapping[Audio, Frames], is_turn: bool) -> Part:
        source = segment.source
        if isinstance(source, str):
            if self._text is None:
                if self.config.data.text_tokenizer is None:
                    raise UserError("data.text_tokenizer is not set; texts of benchmarks need the run's tokenizer")
                self._text = load_text_tokenizer(self.config.data.text_tokenizer)
            tokenizer = self._text.tokenizer
            # As `tolktrain prepare` encodes turns in text.
            turn = np.array(tokenizer.encode(source, add_special_tokens=False).ids) if is_turn else None
            tokens = (encode_words(tokenizer, source.split())[0] if turn is None else turn).astype(np.int64)
        elif isinstance(source, TokenIds):
            tokens = source.ids if segment.modality == "text" else source.ids[:, None]
        else:
            tokens = units[source].astype(np.int64)
        return Part(segment.role, segment.modality, tokens)

    def _rows(self, task: _Task, found: ItemSet, scores: Mapping[str, SetScores]) -> list[dict[str, Any]]:
        rows = []
        for rule in task.rules(found):
            won = {scorer: pair_points(found.pairs, own.by_rule(rule)) for scorer, own in scores.items()}
            for measure in found.measures:
                model = measured(measure, found.pairs, won["model"])
                if model is None:
                    continue
                floors = {scorer: measured(measure, found.pairs, own) for scorer, own in won.items()}
                published = [
                    {"model": entry.model, "percent": entry.percent, "source": entry.source}
                    for entry in task.benchmark.published
                    if (entry.set, entry.measure, entry.rule) == (found.name, measure.name, rule.name)
                ]
                row = {"benchmark": task.config.shown, "set": found.name, "measure": measure.name, "rule": rule.name}
                row |= {"ties": 0.5} | model
                row |= {name: floor["accuracy"] for name in ("unigram", "bigram") if (floor := floors.get(name))}
                rows.append(row | {"published": published})
        return rows

    def _counter(self, what: str) -> Callable[[int, int], None]:
        def count(done: int, total: int) -> None:
            self._progress.touch()
            self._display.update(self._task, description=f"{what}, {done} of {total}")

        return count


def _without_unreadable(found: ItemSet, units: Mapping[Audio, Frames]) -> ItemSet:
    """The set without the pairs of items whose recordings have no units."""

    def is_there(item: str) -> bool:
        return all(
            segment.source in units
            for segment in found.items[item]
            if isinstance(segment.source, (AudioFile, ParquetAudio))
        )

    pairs = tuple(pair for pair in found.pairs if is_there(pair.correct) and is_there(pair.incorrect))
    kept = {name for pair in pairs for name in (pair.correct, pair.incorrect)}
    return replace(found, pairs=pairs, items={name: found.items[name] for name in found.items if name in kept})


def _named(source: Audio, why: str) -> str:
    name = str(source.path) if isinstance(source, AudioFile) else f"{source.path}, row {source.row}, {source.column}"
    return why if name in why else f"{name}: {why}"
