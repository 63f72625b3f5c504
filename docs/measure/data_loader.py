"""Measures the data loader (warm, through S3, memory), and the sampler of the reference code on the same passages.

Usage, from the root of the repository (needs moto for the column `S3`):
    python docs/measure/data_loader.py [--records 2000] [--sequences 4000] [--memory-sequences 90000]

Interleaved sequences of 2048 tokens from synthetic passages of about 6000 tokens (830 of text, 5000 units), one
process, one thread, micro batches of 8. One hour of training is taken as 90,000 sequences: what one of eight workers
supplies in an hour to a node that trains on 400,000 tokens per second.

The sampler of the reference code is rebuilt from its description: ids, lengths and word ends are in flat files, read
through numpy memory maps; for each sequence, a loop over the words of a passage fills lists, which are concatenated at
the end. It draws spans of the same lengths from the same passages, and produces one array of ids and one of modalities.
Ours also produces masks, targets and the packed speech segments that the model needs.
"""

import argparse
import datetime
import gc
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tolktrain.config import Config
from tolktrain.data.loader import StageLoader
from tolktrain.data.records import Record, SpeechInfo, TextInfo
from tolktrain.prepare.job.shards import write_dataset
from tolktrain.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "object_storage"))

TEXT_VOCAB_SIZE, NUM_UNITS, LENGTH, MICRO_BATCH = 49152, 500, 2048, 8
SWITCH = TEXT_VOCAB_SIZE + 2


def make_records(count: int, seed: int = 0) -> list[Record]:
    """Passages of 640 words in utterances of 10 to 25."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        words = int(rng.integers(560, 720))
        text_ends = np.cumsum(rng.choice([1, 2, 3], words, p=[0.75, 0.2, 0.05])).astype(np.uint32)
        unit_ends = np.cumsum(rng.integers(3, 14, words)).astype(np.uint32)
        cuts = np.cumsum(rng.integers(10, 26, words))
        last = np.append(cuts[cuts < words], words) - 1
        records.append(
            Record(
                id=f"passage-{number:06}",
                source=f"speaker-{number % 97}",
                text_ids=rng.integers(1, TEXT_VOCAB_SIZE, int(text_ends[-1])).astype(np.uint32),
                units=rng.integers(0, NUM_UNITS, (int(unit_ends[-1]), 1)).astype(np.uint16),
                run_lengths=rng.integers(1, 4, int(unit_ends[-1])).astype(np.uint16),
                word_text_ends=text_ends,
                word_unit_ends=unit_ends,
                utterance_text_ends=text_ends[last],
                utterance_unit_ends=unit_ends[last],
            )
        )
    return records


def make_config(path: Path, remote: str | None) -> Config:
    """A configuration with one interleaved stage."""
    backbone = {"hidden_size": 64, "num_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    backbone |= {"ffn_hidden_size": 64, "text_vocab_size": TEXT_VOCAB_SIZE}
    stage = {"name": "one", "tokens": 10**9, "learning_rate": 0.1, "mixture": {"interleaved": {"sets": {"a": 1.0}}}}
    return Config.model_validate(
        {
            "run": {"name": "loader"},
            "model": {"backbone": backbone, "speech": {"num_units": NUM_UNITS}},
            "data": {"sets": {"a": {"path": str(path), "remote": remote}}},
            "train": {
                "global_batch_size": MICRO_BATCH,
                "micro_batch_size": MICRO_BATCH,
                "sequence_length": LENGTH,
                "stages": [stage],
            },
        }
    )


def run_loader(config: Config, sequences: int) -> Iterator[int]:
    """Sequences so far, after each step of a loader."""
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS)
    with StageLoader(config, config.train.stages[0].mixture, vocabulary, seed=1) as loader:
        for done in range(MICRO_BATCH, sequences + 1, MICRO_BATCH):
            next(loader)
            yield done


class PublishedWay:
    """Flat files under memory maps, and a loop over words for each sequence."""

    def __init__(self, folder: Path, records: list[Record]) -> None:
        columns = {
            "units": (np.uint16, [record.units[:, 0] for record in records]),
            "text": (np.uint16, [record.text_ids for record in records]),
            "word_units": (np.uint16, [np.diff(record.word_unit_ends, prepend=0) for record in records]),
            "word_text": (np.uint16, [np.diff(record.word_text_ends, prepend=0) for record in records]),
        }
        self.offsets = {name: np.cumsum([0, *map(len, parts)]) for name, (_, parts) in columns.items()}
        self.maps = {}
        for name, (dtype, parts) in columns.items():
            np.concatenate(parts).astype(dtype).tofile(folder / f"{name}.bin")
            self.maps[name] = np.memmap(folder / f"{name}.bin", dtype, mode="r")

    def part(self, name: str, passage: int) -> np.ndarray:
        """One passage of a file."""
        return self.maps[name][self.offsets[name][passage] : self.offsets[name][passage + 1]]

    def sequence(self, passage: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Ids and modalities of one sequence."""
        units, text = self.part("units", passage), self.part("text", passage)
        unit_counts, text_counts = self.part("word_units", passage), self.part("word_text", passage)
        tokens, modalities, length = [], [], 0
        # From the first third, so that the rest fills the sequence.
        first = int(rng.integers(len(unit_counts) // 3))
        unit, word_piece = int(unit_counts[:first].sum()), int(text_counts[:first].sum())
        is_speech = bool(rng.integers(2))
        left = int(rng.integers(5, 16) if is_speech else rng.integers(10, 31))
        for word in range(first, len(unit_counts)):
            if left == 0:
                is_speech = not is_speech
                left = int(rng.integers(5, 16) if is_speech else rng.integers(10, 31))
                tokens.append(np.array([SWITCH]))
                modalities.append(np.array([0]))
                length += 1
            count = int(unit_counts[word] if is_speech else text_counts[word])
            source, begin = (units, unit) if is_speech else (text, word_piece)
            tokens.append(source[begin : begin + count].astype(np.int64))
            modalities.append(np.full(count, int(is_speech)))
            length, left = length + count, left - 1
            unit, word_piece = unit + int(unit_counts[word]), word_piece + int(text_counts[word])
            if length > LENGTH:
                break
        return np.concatenate(tokens)[: LENGTH + 1], np.concatenate(modalities)[: LENGTH + 1]

    def run(self, sequences: int) -> Iterator[int]:
        """Sequences so far, after each micro batch."""
        rng = np.random.default_rng(0)
        for done in range(MICRO_BATCH, sequences + 1, MICRO_BATCH):
            made = [self.sequence(int(rng.integers(len(self.offsets["units"]) - 1)), rng) for _ in range(MICRO_BATCH)]
            full = [pair for pair in made if len(pair[0]) == LENGTH + 1]
            if full:
                torch.from_numpy(np.stack([tokens for tokens, _ in full]))
                torch.from_numpy(np.stack([modalities for _, modalities in full]))
            yield done


def rate(make: Callable[[], Iterator[int]], skip: int = 0) -> float:
    """Tokens a second of wall time, after the first `skip` sequences."""
    begin, done = time.perf_counter(), 0
    for done in make():
        if done == skip:
            begin = time.perf_counter()
    return (done - skip) * LENGTH / (time.perf_counter() - begin)


def resident_mib() -> float:
    """Memory of this process that is its own, without files it has mapped."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_of(config: Config, sequences: int) -> list[float]:
    """Memory of this process in MiB after each tenth of a number of sequences."""
    tenth = max(sequences // 10 // MICRO_BATCH * MICRO_BATCH, MICRO_BATCH)
    return [resident_mib() for done in run_loader(config, sequences) if done % tenth == 0]


def cold_rate(folder: Path, work: Path, sequences: int) -> float:
    """Tokens a second from an S3 server on this machine into an empty cache, the start of the loader included."""
    from s3_server import running_s3_server

    with running_s3_server(work / "s3.log") as server:
        os.environ.update(server.environ)
        address = server.make_bucket()
        packed = work / "packed"
        packed.mkdir()
        for path in folder.iterdir():
            if path.suffix != ".mds":
                (packed / path.name).write_bytes(path.read_bytes())
        server.put_folder(packed, address)
        return rate(lambda: run_loader(make_config(work / "cache", address), sequences))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--memory-sequences", type=int, default=90_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        records = make_records(options.records)
        text = TextInfo(vocab_size=TEXT_VOCAB_SIZE, eos_id=0, sha256="none")
        speech = SpeechInfo(name="none", version="1", num_units=NUM_UNITS, frames_per_second=25.0, sha256="none")
        write_dataset(work / "set", records, name="synthetic", split="train", license="none", text=text, speech=speech)
        published = PublishedWay(work, records)
        del records
        gc.collect()
        local = make_config(work / "set", None)
        skip = options.sequences // 4 // MICRO_BATCH * MICRO_BATCH
        total = options.sequences + skip
        warm = max(rate(lambda: run_loader(local, total), skip) for _ in range(3))
        theirs = max(rate(lambda: published.run(total), skip) for _ in range(3))
        cold = cold_rate(work / "set", work, options.records)
        # In a process of its own, that has done nothing else.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            sizes = pool.submit(memory_of, local, options.memory_sequences).result()
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = found[1] if found else "CPU"
    print(f"`python docs/measure/data_loader.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {cpu},")
    names = ("torch", "numpy", "mosaicml-streaming")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}\n")
    print("| what | tokens per second, one core |\n|---|---|")
    print(f"| warm local cache | {warm / 1e6:.2f} M |\n| cold, through S3 | {cold / 1e6:.2f} M |")
    print(f"| reference code, memory maps | {theirs / 1e6:.2f} M |\n| warm / reference | {warm / theirs:.2f} |\n")
    print(f"Memory of a process with the loader over {options.memory_sequences} sequences, each tenth of them, in MiB:")
    print(", ".join(f"{size:.0f}" for size in sizes))


if __name__ == "__main__":
    main()
