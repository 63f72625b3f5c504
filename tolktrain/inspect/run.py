"""`tolktrain prepare --inspect`: print sequences and statistics of a data set, draw them, and make units audible."""

import json
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from rich.progress import Progress

from tolktrain.config.data import DatasetConfig, InterleavingConfig, Strategy
from tolktrain.data.folder import RecordFolder
from tolktrain.data.index import INDEX_FILE
from tolktrain.data.records import DATASET_FILE, DatasetInfo, Record
from tolktrain.data.strategies import STRATEGIES, require_modalities
from tolktrain.errors import UserError
from tolktrain.files.names import inside
from tolktrain.files.reading import read_json
from tolktrain.files.terminal import Console
from tolktrain.files.writing import naming, write_synced, write_wav
from tolktrain.inspect.audio import speech_frames, waveform_of
from tolktrain.inspect.picture import save_picture
from tolktrain.inspect.sequences import print_legend, print_sequence
from tolktrain.inspect.spans import TakenApart, take_apart
from tolktrain.inspect.statistics import Statistics
from tolktrain.inspect.tables import print_header, print_statistics
from tolktrain.inspect.tokenizers import Tokenizers, fetch_tokenizers, find_tokenizers
from tolktrain.prepare.job.shards import check_record
from tolktrain.storage.open import is_remote
from tolktrain.vocabulary import ROLE_TOKEN, Vocabulary

PICTURE_FILE, STATISTICS_FILE = "statistics.png", "statistics.json"

_BLOCKS = 8  # stretches of records that are read, so that a large set is not fetched or unpacked as a whole


@dataclass(frozen=True)
class InspectOptions:
    """Options of an inspection."""

    path: str  # data set folder, or address such as s3://bucket/set/train
    records: int = 3  # sequences that are printed
    strategy: str | None = None  # of the sequences; absent: the richest that the data allows
    sequence_length: int = 512  # tokens of a sequence
    output: Path | None = None  # folder for the files; absent: runs/inspect-<name>-<split>
    text_tokenizer: str | Path | None = None  # folder; absent: looked for next to the data
    speech_tokenizer: str | Path | None = None  # folder; absent: looked for next to the data
    statistics_records: int = 2000  # most records that are measured
    audio_seconds: float = 30.0  # longest audio made of a sequence
    seed: int = 0  # of the sequences, as run.seed
    interleaving: InterleavingConfig = field(default_factory=InterleavingConfig)


def inspect_dataset(options: InspectOptions, console: Console) -> None:
    """Print what a data set holds, and write statistics.png, statistics.json and record-*.wav.

    Files of an earlier call in the same folder are replaced; on an error the folder stays as it was.

    Raises:
        UserError: the path holds no data set, the strategy is unknown or not served by the data, a tokenizer is not
            the one the data was made with, or an option is out of range.
    """
    _check_options(options)
    with tempfile.TemporaryDirectory(prefix="tolktrain-inspect-") as cache:
        records, tokenizers = _open(options, Path(cache))
        options = replace(options, output=options.output or _default_output(records.info, options))
        strategy = _strategy(options.strategy, records.info, records[0])
        if records.info.conversations is not None:  # shorter sequences could be without an answer
            length = max(options.sequence_length, records.info.conversations.sequence_length)
            options = replace(options, sequence_length=length)
        print_header(console, records.info, options.path, tokenizers)
        statistics, shown = _measure(records, strategy, options, console)
        rate = records.info.speech.frames_per_second if records.info.speech is not None else 1.0
        if shown:
            console.print()
            print_legend(console)
        for number, apart in shown.items():
            print_sequence(console, apart, number, tokenizers.text, rate)
        print_statistics(console, statistics, strategy, options.sequence_length)
        _write_files(statistics, shown, tokenizers, strategy, options, console)


def chosen_records(total: int, most: int) -> list[int]:
    """Numbers of at most `most` records out of `total`, rising: all, or a few stretches spread evenly over the set."""
    if most >= total:
        return list(range(total))
    blocks = min(_BLOCKS, most)
    firsts = np.arange(blocks) * total // blocks
    sizes = np.diff(np.arange(blocks + 1) * most // blocks)
    return [int(first) + i for first, size in zip(firsts, sizes, strict=True) for i in range(size)]


def evenly(numbers: list[int], count: int) -> list[int]:
    """`count` of the numbers, from the middles of equal parts; all if there are no more."""
    count = min(count, len(numbers))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count)]


def _check_options(options: InspectOptions) -> None:
    if options.strategy is not None and options.strategy not in STRATEGIES:
        raise UserError(f"the strategy {options.strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    least = {"records": 0, "sequence_length": 1, "statistics_records": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(options, name)}; it must be at least {smallest}")


def _open(options: InspectOptions, cache: Path) -> tuple[RecordFolder, Tokenizers]:
    """The records and tokenizers; what a remote set needs is fetched into `cache`."""
    if is_remote(options.path):
        records = RecordFolder(DatasetConfig(path=str(cache / "shards"), remote=options.path.removesuffix("/")))
        if options.text_tokenizer is None or options.speech_tokenizer is None:
            fetch_tokenizers(options.path, cache)
        folders = [cache]
    else:
        folder = Path(options.path)
        _check_folder(folder)
        records = RecordFolder(DatasetConfig(path=str(folder)))
        folders = [folder, folder.resolve().parent]
    given = (None if name is None else Path(name) for name in (options.text_tokenizer, options.speech_tokenizer))
    return records, find_tokenizers(records.info, folders, *given)


def _check_folder(folder: Path) -> None:
    missing = [name for name in (INDEX_FILE, DATASET_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder of a data set, with {INDEX_FILE} and {DATASET_FILE}")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{DATASET_FILE}"))
    hint = f"it holds the data sets {', '.join(inside)}: name one of them" if inside else "name another folder"
    raise UserError(f"{folder} is no data set: it has no {' and no '.join(missing)}; {hint}")


def _strategy(name: str | None, info: DatasetInfo, first: Record) -> Strategy:
    """The strategy asked for, or the richest that the data allows."""
    text, speech = info.text is not None, info.speech is not None
    if name is not None:
        strategy = cast(Strategy, name)
        require_modalities(strategy, text, speech, first.is_aligned, f"the data set {info.name!r}", info.kind)
        return strategy
    if info.conversations is not None:
        return cast(Strategy, info.conversations.strategies[0])
    if first.is_aligned:
        return "interleaved"
    if text and speech:
        return "recognition"
    return "speech" if speech else "text"


def _measure(
    records: RecordFolder, strategy: Strategy, options: InspectOptions, console: Console
) -> tuple[Statistics, dict[int, TakenApart]]:
    """Statistics, and the sequences that are shown by the number of their records."""
    info = records.info
    vocabulary = Vocabulary(
        text_vocab_size=info.text.vocab_size if info.text is not None else 1,
        text_eos=info.text.eos_id if info.text is not None else 0,
        num_units=info.speech.num_units if info.speech is not None else 1,
        num_codebooks=info.speech.num_codebooks if info.speech is not None else 1,
        special_tokens=()
        if info.conversations is None
        else tuple(ROLE_TOKEN.format(role) for role in info.conversations.roles),
    )
    numbers = chosen_records(len(records), options.statistics_records)
    chosen = set(evenly(numbers, options.records))
    statistics, shown = Statistics(info), {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for number in progress.track(numbers, description="reading records"):
            record = records[number]
            check_record(record, info.text, info.speech)
            apart = take_apart(
                record, strategy, vocabulary, options.sequence_length, options.interleaving, options.seed
            )
            statistics.add(apart)
            if number in chosen:
                shown[number] = apart
    return statistics, shown


def _write_files(
    statistics: Statistics,
    shown: dict[int, TakenApart],
    tokenizers: Tokenizers,
    strategy: Strategy,
    options: InspectOptions,
    console: Console,
) -> None:
    info = statistics.info
    output = options.output
    assert output is not None
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".inspect-") as temporary:
        aside = Path(temporary)
        with naming(aside / PICTURE_FILE):
            save_picture(statistics, aside / PICTURE_FILE)
        rate = info.speech.frames_per_second if info.speech is not None else 1.0
        seconds = _write_audio(aside, shown, tokenizers, rate, options, console)
        content = {
            "data_set": options.path,
            "strategy": strategy,
            "sequence_length": options.sequence_length,
            "seed": options.seed,
            "sounds": seconds,
            **statistics.to_json(),
        }
        write_synced(aside / STATISTICS_FILE, (json.dumps(content, indent=2) + "\n").encode())
        _move_files(aside, output)
    console.print()
    for name in (PICTURE_FILE, STATISTICS_FILE):
        console.print(f"{output / name}", highlight=False, soft_wrap=True)
    for name, length in seconds.items():
        console.print(f"{output / name}  {length:.1f} s of speech from its units", highlight=False, soft_wrap=True)
    if shown and not seconds:
        console.print(f"No audio: {_why_silent(info, tokenizers)}", highlight=False, soft_wrap=True)


def _default_output(info: DatasetInfo, options: InspectOptions) -> Path:
    name = f"inspect-{info.name}-{info.split}"
    if "/" in name:
        raise UserError(
            f"{options.path}: {DATASET_FILE} has the name {info.name!r:.80} and the split {info.split!r:.80}, which"
            " cannot name a folder; give the folder for the files with --output"
        )
    return inside(Path("runs"), name, f"{options.path}/{DATASET_FILE}")


def _why_silent(info: DatasetInfo, tokenizers: Tokenizers) -> str:
    if info.speech is None:
        return "the set has no speech"
    if tokenizers.vocoder is None:
        return f"speech tokenizer {tokenizers.speech_note}"
    return "the sequences hold no speech"


def _write_audio(
    folder: Path,
    shown: dict[int, TakenApart],
    tokenizers: Tokenizers,
    frames_per_second: float,
    options: InspectOptions,
    console: Console,
) -> dict[str, float]:
    """Write the audio of the shown sequences; their files and lengths in seconds, pauses left out."""
    vocoder = tokenizers.vocoder
    if vocoder is None:
        return {}
    lengths = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for number, apart in progress.track(shown.items(), description="turning units into audio"):
            stretches = speech_frames(apart, int(options.audio_seconds * frames_per_second))
            if stretches:
                name = f"record-{number:05}.wav"
                write_wav(folder / name, waveform_of(stretches, vocoder), vocoder.sample_rate)
                lengths[name] = sum(map(len, stretches)) / frames_per_second
    return lengths


def _move_files(source: Path, target: Path) -> None:
    """Move the files into the folder, and remove the waveforms of an earlier call that its statistics.json names."""
    target.mkdir(exist_ok=True)
    for name in _earlier_audio(target / STATISTICS_FILE):
        (target / name).unlink(missing_ok=True)
    for path in sorted(source.iterdir()):
        os.replace(path, target / path.name)


def _earlier_audio(path: Path) -> list[str]:
    try:
        names = list(read_json(path)["sounds"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if re.fullmatch(r"record-\d+\.wav", str(name))]
