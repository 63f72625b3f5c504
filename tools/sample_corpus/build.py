"""Build the embedded corpus: `python tools/build_sample_corpus.py --output data/sample`.

Stories from the grammar, spoken by espeak-ng, k-means over log-mel frames fitted on the training audio, units
aligned with the words, MDS shards, tokenizers, prompts; dialogues about short stories, with the same voices and
tokenizers. The same program and libraries give the same bytes.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer

from sample_corpus import corpus, espeak
from sample_corpus.prompts import write_prompts
from sample_corpus.readme import describe, describe_dialogues
from sample_corpus.spoken import SpokenPassage, make_record, speak
from sample_corpus.spoken_dialogues import build_dialogues
from tolktrain.data.records import DatasetInfo, TextInfo
from tolktrain.data.text_tokenizer import END_OF_TEXT, TOKENIZER_FILE, train_tokenizer
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.files.reading import file_sha256
from tolktrain.files.terminal import Console
from tolktrain.files.writing import naming, write_synced
from tolktrain.prepare.job.shards import speech_info, write_dataset
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis

NAME = "spoken-stories"
TEXT_FOLDER = "text_tokenizer"
SPEECH_FOLDER = "speech_tokenizer"
PROMPTS_FOLDER = "prompts"
DIALOGUES_FOLDER = "dialogues"
FIT_EVERY = 4  # frames per frame that k-means sees


def fit_speech_tokenizer(spoken: Sequence[SpokenPassage], analysis: LogMelAnalysis) -> LogMelTokenizer:
    """k-means over every fourth frame of the training passages."""
    features = [
        sentence.features for passage in spoken if passage.passage.split == "train" for sentence in passage.sentences
    ]
    return LogMelTokenizer.fit(np.concatenate(features)[::FIT_EVERY], corpus.NUM_UNITS, corpus.SEED, analysis)


def text_info(tokenizer: Tokenizer, folder: Path) -> TextInfo:
    """The text side of dataset.json."""
    digest = file_sha256(folder / TOKENIZER_FILE)
    return TextInfo(vocab_size=tokenizer.get_vocab_size(), eos_id=tokenizer.token_to_id(END_OF_TEXT), sha256=digest)


def build(folder: Path, processes: int, console: Console) -> dict[str, DatasetInfo]:
    """Build the whole corpus into an empty folder; the descriptions of its splits by name."""
    analysis = LogMelAnalysis()
    passages = list(corpus.passages())
    progress = track(
        speak(passages, analysis, processes), "Speaking", total=len(passages), console=console, transient=True
    )
    spoken = list(progress)
    with console.status("Fitting the speech tokenizer"):
        speech = fit_speech_tokenizer(spoken, analysis)
        speech.save(folder / SPEECH_FOLDER)
    texts = [" " + passage.story.text for passage in passages if passage.split == "train"]
    text = train_tokenizer(texts, corpus.TEXT_VOCAB_SIZE)
    (folder / TEXT_FOLDER).mkdir()
    with naming(folder / TEXT_FOLDER / TOKENIZER_FILE):
        text.save(str(folder / TEXT_FOLDER / TOKENIZER_FILE))
    infos = {}
    for split in corpus.SPLITS:
        infos[split.name] = write_dataset(
            folder / split.name,
            [make_record(passage, text, speech) for passage in spoken if passage.passage.split == split.name],
            name=NAME,
            split=split.name,
            license=corpus.LICENSE,
            text=text_info(text, folder / TEXT_FOLDER),
            speech=speech_info(speech),
        )
    heldout = (passage for passage in spoken if passage.passage.split == "heldout_stories")
    write_prompts(folder / PROMPTS_FOLDER, heldout, speech.sample_rate)
    write_synced(folder / "README.md", describe(infos, folder, espeak.version()).encode())
    info = text_info(text, folder / TEXT_FOLDER)
    path = folder / DIALOGUES_FOLDER
    path.mkdir()
    made = build_dialogues(path, text, info, speech, processes, console)
    write_synced(path / "README.md", describe_dialogues(made, path).encode())
    return infos | {f"{DIALOGUES_FOLDER}/{name}": found for name, found in made.items()}


def corpus_files(folder: Path) -> list[Path]:
    """Files of a corpus, without the shards that a reader has unpacked next to the compressed ones."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mds")


def differences(left: Path, right: Path) -> list[str]:
    """Files that only one of two folders has, or whose bytes differ."""
    files = [{str(path.relative_to(folder)) for path in corpus_files(folder)} for folder in (left, right)]
    lines = [f"only in {left}: {name}" for name in sorted(files[0] - files[1])]
    lines += [f"only in {right}: {name}" for name in sorted(files[1] - files[0])]
    both = sorted(files[0] & files[1])
    return lines + [f"differs: {name}" for name in both if not filecmp.cmp(left / name, right / name, shallow=False)]


def summary(infos: dict[str, DatasetInfo]) -> Table:
    """The splits and their sizes."""
    table = Table("split", "records", "hours", "words", "text ids", "units", title="Embedded corpus")
    for name, info in infos.items():
        numbers = (info.num_records, info.num_words, info.num_text_tokens, info.num_units)
        records, words, ids, units = (f"{number:,}" for number in numbers)
        table.add_row(name, records, f"{info.hours:.2f}", words, ids, units)
    return table


def create(output: Path, overwrite: bool, processes: int, console: Console) -> None:
    """Build aside, then move into place. Raises `UserError` if the folder has content that must not be overwritten."""
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UserError(
            f"{output} is not empty; give another folder, or --overwrite, or compare it with a rebuild by --verify"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        built = Path(temporary) / "corpus"
        built.mkdir()
        console.print(summary(build(built, processes, console)))
        if output.exists():
            shutil.rmtree(output)
        os.replace(built, output)
    size = sum(path.stat().st_size for path in corpus_files(output))
    console.print(f"{output}: {size / 1e6:.2f} MB")


def verify(folder: Path, processes: int, console: Console) -> bool:
    """Whether a rebuild gives the same bytes; prints the files that differ."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the folder of a built corpus")
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary)
        build(built, processes, console)
        found = differences(folder, built)
    for line in found:
        console.print(line)
    console.print("The rebuild differs." if found else "The rebuild gives the same bytes.")
    return not found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a verified folder differs or the machine failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python tools/build_sample_corpus.py", description="Build the embedded corpus."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, help="folder to build into")
    target.add_argument("--verify", type=Path, metavar="FOLDER", help="rebuild and compare with this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    parser.add_argument("--processes", type=int, default=2, help="processes that speak; the result is the same")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.verify is not None:
            return 0 if verify(options.verify, options.processes, console) else 1
        create(options.output, options.overwrite, options.processes, console)
    except UserError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(error), file=sys.stderr)
        return 1
    return 0
