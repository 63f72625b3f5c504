"""`tolktrain evaluate --generation`: the quality of the speech that a model generates, judged by its transcripts."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import Progress as Display

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.data.folder import open_records
from tolktrain.errors import UserError
from tolktrain.evaluate.baselines import fit_baselines
from tolktrain.evaluate.benchmarks.base import Problems
from tolktrain.evaluate.generation.judges import Recognizer, TextJudge
from tolktrain.evaluate.generation.measures import auto_bleu, word_edits, words_of
from tolktrain.evaluate.generation.recordings import Recording, read_recordings
from tolktrain.evaluate.generation.speech import Encoded, Speech, Spoken
from tolktrain.evaluate.generation.summary import KINDS, SpokenItem, rows
from tolktrain.evaluate.ngram import Bigram
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.decoding import use_accelerator
from tolktrain.generate.sampling import Sampling
from tolktrain.interop.trained import load_trained
from tolktrain.parallel.collectives import all_gather_objects, on_rank_zero
from tolktrain.parallel.layout import initialize
from tolktrain.runs.paths import RunPaths
from tolktrain.units.pretrained import model_digest
from tolktrain.vocabulary import Vocabulary

FORMAT = 1
_LONGEST_WAIT = timedelta(days=2)  # for another rank; the watchdog ends all ranks if one makes no progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is generated and who judges it. The numbers are those with which slamkit's results were published."""

    folder: Path  # of recordings
    asr: Path | None = None  # CTC model or Whisper; None: no transcripts
    lm: Path | None = None  # text language model; None: no GenPPL
    recordings: int = 1000  # the first ones are used
    prompt_seconds: float = 3.0
    units: int = 150  # of a continuation, EOS included
    temperature: float = 0.8
    top_k: int = 25
    seed: int = 0
    batch: int = 8  # prompts that are continued together
    language: str = "en"  # for a multilingual Whisper
    allow_incomplete: bool = False  # leave out recordings that cannot be read


def evaluate_generation(
    run_dir: str | Path, options: Options, progress: Progress | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Let a model continue the beginnings of recordings, judge the speech, and write generation.json and
    scores/generation/items.jsonl into the run's folder.

    Run by several processes (torchrun, srun), each takes a part of the recordings; the first one writes. The result
    does not depend on their number.

    Args:
        run_dir: run, or folder of weights.
        options: of the generation.
        progress: where this rank's progress is reported, for its watchdog.
        overrides: of the configuration of a folder of weights.

    Returns:
        The content of generation.json: `format`, `run`, `step`, `device`; `settings`, the options; `asr` and `lm`, each
        with `folder` and `sha256`, or None; `rows`, one per kind of speech (`summary.KINDS`): `kind`, `samples`, mean
        `seconds`, `units_per_second`; with speech recognition `empty` transcripts and `auto_bleu`, for speech with a
        transcript `wer` and its reference `words`; with a language model `genppl` and the number of `unscored`
        transcripts; the last three with `_low` and `_high` of their 95 % bootstrap intervals over samples; `unreadable`
        recordings; `seconds`.

    Raises:
        UserError: there is no model, recording, vocoder or judge, a judge is incomplete, or a recording is unreadable
            and `options.allow_incomplete` is false.
    """
    begin = time.monotonic()
    if options.lm is not None and options.asr is None:
        raise UserError("--lm judges transcripts; name a model of speech recognition with --asr")
    environment = ProcessEnvironment.detect()
    environment.export()
    progress = progress or Progress()
    progress.at("joining the other processes")
    initialize(timeout=_LONGEST_WAIT)
    progress.at("reading the recordings")
    recordings = on_rank_zero(environment.rank, lambda: read_recordings(options.folder, options.recordings))
    progress.at("loading the models")
    model, config, state = load_trained(run_dir, overrides=overrides)
    continuer = Continuer(use_accelerator(model), config, state.get("tokenizers") or {})
    display = spinner()
    display.disable = environment.rank != 0
    with display:
        run = _Run(continuer, options, environment, progress, display)
        items, unreadable = run.measure(recordings)
    result = {
        "format": FORMAT,
        "run": config.run.name,
        "step": int(state.get("step") or 0),
        "device": str(next(model.parameters()).device),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "asr": _described(options.asr),
        "lm": _described(options.lm),
        "rows": rows(items),
        "unreadable": unreadable,
        "seconds": round(time.monotonic() - begin, 2),
    }
    if environment.rank == 0:
        _write(RunPaths(Path(run_dir)), result, items)
    return result


class _Run:
    """One model on all recordings of this rank."""

    def __init__(
        self,
        continuer: Continuer,
        options: Options,
        environment: ProcessEnvironment,
        progress: Progress,
        display: Display,
    ) -> None:
        self._options = options
        self._rank, self._world_size = environment.rank, environment.world_size
        self._progress, self._display = progress, display
        self._task = display.add_task("starting", total=None)
        device = str(next(continuer.model.parameters()).device)
        self._asr = None if options.asr is None else Recognizer(options.asr, device, options.language)
        self._lm = None if options.lm is None else TextJudge(options.lm, device)
        settings = Sampling(options.temperature, options.top_k, options.seed)
        bigram = _bigram(continuer.config, continuer.vocabulary)
        self._speech = Speech(continuer, settings, options.units, bigram)

    def measure(self, recordings: Sequence[Recording]) -> tuple[list[SpokenItem], int]:
        """The items of all ranks, in the order of the recordings, and how many recordings are unreadable."""
        encoded, failures = self._encode(recordings)
        batches = [encoded[begin:][: self._options.batch] for begin in range(0, len(encoded), self._options.batch)]
        found: list[tuple[int, SpokenItem]] = []
        failure = None
        say = self._counter("speech")
        self._progress.at("generating and judging speech")
        try:
            for batch in batches:
                for entry, spoken in self._speech.of(batch):
                    found.append((entry.number, self._judged(entry, spoken)))
                    say(len({number for number, _ in found}), len(encoded))
        except UserError as error:
            failure = str(error)
        gathered = all_gather_objects((found, failure))
        for _, message in gathered:
            if message is not None:
                raise UserError(message)
        pairs = sorted(
            (pair for part, _ in gathered for pair in part), key=lambda pair: (pair[0], KINDS.index(pair[1].kind))
        )
        return [item for _, item in pairs], failures

    def _encode(self, recordings: Sequence[Recording]) -> tuple[list[Encoded], int]:
        """This rank's recordings, and how many of all ranks are unreadable."""
        self._progress.at("encoding the recordings")
        encoded, problems = [], []
        mine = range(self._rank, len(recordings), self._world_size)
        say = self._counter("units of recordings")
        for place, number in enumerate(mine, start=1):
            try:
                encoded.append(self._speech.encode(number, recordings[number], self._options.prompt_seconds))
            except UserError as error:
                problems.append((number, str(error)))
            say(place, len(mine))
        names = tuple(text for _, text in sorted(one for part in all_gather_objects(problems) for one in part))
        if names:
            sentence = Problems(unreadable=names).sentence(serious=True)
            if not self._options.allow_incomplete or len(names) == len(recordings):
                raise UserError(
                    f"{sentence}; get the recordings from their source again, or leave them out with --allow-incomplete"
                )
            logger.warning("%s", sentence)
        return encoded, len(names)

    def _judged(self, entry: Encoded, spoken: Spoken) -> SpokenItem:
        item = SpokenItem(entry.recording.id, spoken.kind, spoken.seconds, spoken.units)
        if self._asr is None:
            return item
        if spoken.frames is None:
            rate = self._asr.sample_rate
            samples = self._speech.waveform(entry.recording, rate)
        else:
            samples, rate = self._speech.audio(spoken.frames)
        text = self._asr.transcribe(samples, rate)
        words = words_of(text)
        item = replace(item, transcript=text, auto_bleu=auto_bleu(words))
        if self._lm is not None:
            nll, tokens = self._lm.nll(text)
            item = replace(item, nll=nll, tokens=tokens)
        if entry.recording.text is not None and spoken.kind not in ("generated", "bigram"):
            reference = words_of(entry.recording.text)
            item = replace(item, edits=word_edits(reference, words), words=len(reference))
        return item

    def _counter(self, what: str) -> Callable[[int, int], None]:
        def count(done: int, total: int) -> None:
            self._progress.touch()
            self._display.update(self._task, description=f"{what}, {done} of {total}")

        return count


def _bigram(config: Config, vocabulary: Vocabulary) -> Bigram | None:
    """Of the units of the training set; None without one, or with several codebooks."""
    name = config.evaluation.train_set
    if name is None or vocabulary.num_codebooks > 1:
        return None
    records = open_records(config.data.sets[name])
    number = min(len(records), config.evaluation.baseline_records)
    fitted = fit_baselines((records[index] for index in range(number)), vocabulary).speech
    return None if fitted is None else fitted[0]


def _described(folder: Path | None) -> dict[str, str] | None:
    return None if folder is None else {"folder": str(folder), "sha256": model_digest(folder)}


def _write(paths: RunPaths, result: dict[str, Any], items: Sequence[SpokenItem]) -> None:
    header = {"kind": "header", **{name: result[name] for name in ("format", "run", "step", "settings", "asr", "lm")}}
    lines = [json.dumps(entry, ensure_ascii=False) for entry in (header, *map(asdict, items))]
    folder = paths.scores / "generation"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "items.jsonl", "\n".join(lines) + "\n")
    replace_file(paths.generation, json.dumps(result, indent=2) + "\n")
