"""What a run of the sweep gets on each held-out sequence and each trial, so that variants are compared item by item."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.checks import check_data
from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.data.records import Record
from tolktrain.errors import UserError
from tolktrain.evaluate.choices import DIRECTIONS, build_pair, draw_trials
from tolktrain.evaluate.scorer import Scorer
from tolktrain.evaluate.scoring import mean_log_likelihoods, points
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.files.writing import replace_file
from tolktrain.runs.load_model import load_model
from tolktrain.vocabulary import Vocabulary

FORMAT = 1
LOSSES: tuple[Strategy, ...] = ("speech", "text", "interleaved")
_SEED = 0  # of sequences and trials: the same for runs of all seeds


@dataclass(frozen=True)
class Items:
    """The items of one measure on one held-out set. The measure is the sum of `values` over that of `weights`."""

    set: str
    measure: str  # such as "speech loss" or "text_to_speech"
    keys: tuple[str, ...]  # of the items
    groups: tuple[str, ...]  # equal for items of the same text
    values: tuple[float, ...]  # nats of a sequence, or points of a trial
    weights: tuple[float, ...]  # scored positions of a sequence, or 1


@dataclass(frozen=True)
class RunItems:
    """All measures of a run."""

    step: int
    tokens: int
    parameters: int
    measures: tuple[Items, ...]


def measure_run(run_dir: Path) -> RunItems:
    """Losses per held-out sequence, and points per trial of the choice between continuations, of a trained run.

    Raises UserError if it has no checkpoint or no held-out set.
    """
    model, config, state = load_model(run_dir)
    if not config.evaluation.heldout_sets:
        raise UserError(f"{run_dir}: evaluation.heldout_sets is empty; name the held-out data sets")
    vocabulary = check_data(config, model.architecture.text_vocab_size, verify_files=False)
    scorer = Scorer(model)
    measures: list[Items] = []
    for name in config.evaluation.heldout_sets:
        records = open_records(config.data.sets[name])
        measures += (_losses(config, name, strategy, vocabulary, scorer, records) for strategy in LOSSES)
        measures += _choices(config, name, vocabulary, scorer, records)
    step = int(state.get("step", 0))
    tokens = step * config.train.tokens_per_step
    return RunItems(step, tokens, scorer.parameters()["total"], tuple(measures))


def _losses(
    config: Config, name: str, strategy: Strategy, vocabulary: Vocabulary, scorer: Scorer, records: Sequence[Record]
) -> Items:
    count = min(config.evaluation.sequences, len(records))
    batches = validation_batches(
        config.data.sets[name],
        strategy,
        count,
        vocabulary=vocabulary,
        sequence_length=config.train.sequence_length,
        interleaving=config.data.interleaving,
        micro_batch_size=config.train.micro_batch_size,
        seed=_SEED,
    )
    sums: list[float] = []
    scored: list[float] = []
    for batch in batches:
        mask = (batch.text_pred | batch.speech_pred).numpy()
        sums += (scorer.token_nll(batch) * mask).sum(axis=1).tolist()
        scored += mask.sum(axis=1).tolist()
    chosen = [records[row] for row in range(count)]
    keys, groups = tuple(record.id for record in chosen), tuple(map(_text_key, chosen))
    return Items(name, f"{strategy} loss", keys, groups, tuple(sums[:count]), tuple(scored[:count]))


def _choices(
    config: Config, name: str, vocabulary: Vocabulary, scorer: Scorer, records: Sequence[Record]
) -> Iterator[Items]:
    settings, length = config.evaluation, config.train.sequence_length
    words = settings.prompt_words, settings.continuation_words
    trials = draw_trials(records, settings.choices, vocabulary, *words, seed=_SEED)
    for direction in DIRECTIONS:
        kept = [(t, pair) for t in trials if (pair := build_pair(t, direction, vocabulary, length)) is not None]
        if not kept:
            continue
        flat = [sequence for _, pair in kept for sequence in pair]
        scores = mean_log_likelihoods(
            flat, scorer.token_nll, vocabulary.text_eos, config.train.micro_batch_size * length
        ).reshape(-1, 2)
        won = points(scores[:, 0], scores[:, 1])
        keys = tuple(f"{t.true.words.record.id} {t.true.begin}-{t.true.middle}" for t, _ in kept)
        groups = tuple(_text_key(t.true.words.record) for t, _ in kept)
        yield Items(name, direction, keys, groups, tuple(won.tolist()), tuple(np.ones(len(won)).tolist()))


def _text_key(record: Record) -> str:
    content = record.text_ids.tobytes() if record.has_text else record.id.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def write_items(path: Path, items: RunItems) -> None:
    """Write a file of items, whole or not at all. Raises OSError with its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"format": FORMAT, **asdict(items)}) + "\n")


def read_items(path: Path) -> RunItems:
    """The content of a file of items. Raises UserError if it is damaged or of another version."""
    try:
        content: Mapping[str, Any] = read_json(path, TABLE_BYTES)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        measures = tuple(
            Items(
                set=str(entry["set"]),
                measure=str(entry["measure"]),
                keys=tuple(entry["keys"]),
                groups=tuple(entry["groups"]),
                values=tuple(map(float, entry["values"])),
                weights=tuple(map(float, entry["weights"])),
            )
            for entry in content["measures"]
        )
        return RunItems(int(content["step"]), int(content["tokens"]), int(content["parameters"]), measures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and run the sweep again") from None
