"""Reads hostile variants of every kind of file that `tolktrain prepare` and its neighbours read: FOLDER.

Prints each case before it is read, and fails when something else than the promised errors escapes. Limits on memory
and time are set here, after the imports.
"""

import gzip
import json
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from recordings import write_text_tokenizer

from tolktrain.config.load import load_config, load_prepare_config
from tolktrain.config.prepare import RecordingsConfig, TextConfig
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.published.files import detect_lengths
from tolktrain.prepare.recordings.align.word_times import check_words, read_word_times
from tolktrain.prepare.recordings.audio import read_audio
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.text.documents import find_files, ranges_of, read_documents
from tolktrain.prepare.utterances import EntryError, Utterance
from tolktrain.runs.metrics import last_step, lines_of_stage, truncate_metrics
from tolktrain.runs.rollbacks import read_rollbacks

MEMORY_BYTES = 3 << 30  # beyond what the imports take
CPU_SECONDS = 900
LARGE_BYTES = 3 << 30  # of a file without a line end; it has holes, and takes no disk
MUTATIONS = 12


@dataclass(frozen=True)
class Reader:
    """A kind of file, a good one, and what reads it."""

    file: str  # its name in a folder of its own
    good: bytes
    read: Callable[[Path], object]
    other_files: tuple[tuple[str, bytes], ...] = ()  # other files that it needs
    mutations: int = MUTATIONS


def manifest(kind: str) -> Callable[[Path], object]:
    """A reader of manifests: the format, or auto."""

    def read(path: Path) -> object:
        folders = kind in ("folder", "librispeech")
        fields = {"format": kind, "speech_tokenizer": {"path": "units"}}
        config = RecordingsConfig.model_validate({"manifest": str(path.parent if folders else path), **fields})
        utterances, failures = read_manifest(config)
        return [failure.detail.encode() for failure in failures], utterances

    return read


def word_times(path: Path) -> object:
    words = read_word_times(str(path), "u")
    check_words(words, 10.0)
    return words


def documents(path: Path) -> object:
    config = TextConfig(files=(str(path),))
    count = 0
    for file, name, kind in find_files(config.files):
        for part, _ in ranges_of(file, name, kind, 1 << 16 if path.stat().st_size < 1 << 20 else 1 << 30, config):
            count += sum(1 for _ in read_documents(part, config))
    return count


def metrics(path: Path) -> object:
    found = last_step(path.parent), list(lines_of_stage(path.parent, "a"))
    truncate_metrics(path.parent, 1)
    return found


def read_waveform(path: Path) -> object:
    return read_audio(Utterance("u", "u", "", str(path)), 16_000)


def as_jsonl(*items: object) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in items).encode()


ENTRY = {"id": "u", "audio": "a.wav", "offset": 0.5, "duration": 1.5, "channel": 0, "text": "the sea", "speaker": "s"}
TIMES = [{"word": "the", "start": 0.0, "end": 0.25}, {"word": "sea", "start": 0.25, "end": 1.5}]
SOURCE = {"type": "file", "channels": [0], "source": "a.flac"}
RECORDING = {"id": "r", "sources": [SOURCE], "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
SUPERVISION = {"id": "u", "recording_id": "r", "start": 0.0, "duration": 1.5, "channel": 0, "text": "the sea"}
CUT = {"id": "c", "start": 0.0, "duration": 2.0, "channel": 0, "supervisions": [SUPERVISION], "recording": RECORDING}
CUT["type"] = "MonoCut"
TEXTS = {"custom": {"texts": ["The sea."]}, "alignment": {"word": [["the", 0.0, 0.25, 1.0]]}}
HEAVY = {**CUT, "supervisions": [{**SUPERVISION, **TEXTS}]}
LONG_GRID = b"""File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "sea"
"""
SHORT_GRID = (
    b'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n2\n<exists>\n1\n"IntervalTier"\n"words"\n0\n2\n1\n'
)
SHORT_GRID += b'0\n2\n"sea"\n'
PREPARE = b"name: a\noutput: out\nrecordings: {manifest: m.jsonl, speech_tokenizer: {path: units}}\nprocesses: 1\n"
STEP = {"step": 1, "stage": "a", "loss": 1.5}
ROLLBACK = {
    "number": 1,
    "time": "t",
    "stage": "a",
    "reason": "r",
    "first_bad_step": 3,
    "last_bad_step": 4,
    "to_step": 2,
}
ROLLBACK |= {"skipped_data": [2, 4], "carried_out": False}


def packed(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def readers(folder: Path) -> Iterator[Reader]:
    """All of them; `folder` is for making good files."""
    # Every configuration is read by `read_document` first, so that it needs no reader of its own.
    yield Reader("prepare.yaml", PREPARE, load_prepare_config, mutations=2 * MUTATIONS)
    yield Reader("train.yaml", b"run: {name: a, seed: 1}\nbase: []\n", load_config)
    yield Reader("m.jsonl", as_jsonl({**ENTRY, "words": TIMES}), manifest("jsonl"))
    yield Reader("auto.jsonl", as_jsonl(ENTRY), manifest("auto"))
    yield Reader("m.jsonl.gz", gzip.compress(as_jsonl(ENTRY)), manifest("jsonl"))
    yield Reader("m.tsv", b"id\taudio\tduration\tchannel\nu\ta.wav\t1.5\t0\n", manifest("tsv"))
    yield Reader("a.txt", b"the sea", manifest("folder"), (("a.wav", b""),))
    yield Reader(
        "a.json", json.dumps({"text": "the sea", "words": TIMES}).encode(), manifest("folder"), (("a.wav", b""),)
    )
    yield Reader("1-2.trans.txt", b"1-2-3 THE SEA\n", manifest("librispeech"), (("1-2-3.flac", b""),))
    yield Reader("heavy.jsonl", as_jsonl(HEAVY), manifest("libriheavy"))
    yield Reader("cuts.jsonl", as_jsonl(CUT), manifest("lhotse"))
    yield Reader(
        "a_recordings.jsonl",
        as_jsonl(RECORDING),
        manifest("lhotse"),
        (("a_supervisions.jsonl", as_jsonl(SUPERVISION)),),
    )
    yield Reader("long.TextGrid", LONG_GRID, word_times)
    yield Reader("short.TextGrid", SHORT_GRID, word_times)
    yield Reader("u.ctm", b"u 1 0.0 0.25 the\nu 1 0.25 1.5 sea 0.9\n", word_times)
    yield Reader("u.alignment.txt", b'u ",THE,SEA," "0.250,0.500,1.125,1.500"\n', word_times)
    yield Reader("u.json", json.dumps({"words": TIMES}).encode(), word_times)
    yield Reader("d.jsonl", as_jsonl({"text": "the sea"}, {"text": "the moon"}), documents)
    yield Reader("d.jsonl.gz", gzip.compress(as_jsonl({"text": "the sea"})), documents)
    yield Reader("d.jsonl.zst", packed(as_jsonl({"text": "the sea"})), documents)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["the sea", "the moon"]}), folder / "d.parquet")
    yield Reader("d.parquet", (folder / "d.parquet").read_bytes(), documents)
    write_text_tokenizer(folder / "tokenizer")
    tokenizer, settings = (
        (folder / "tokenizer" / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")
    )

    def load(path: Path) -> object:
        return load_text_tokenizer(path.parent)

    yield Reader("tokenizer.json", tokenizer, load, (("tokenizer_config.json", settings),))
    yield Reader("tokenizer_config.json", settings, load, (("tokenizer.json", tokenizer),))
    soundfile.write(folder / "a.wav", 0.1 * np.sin(np.arange(1_600) / 9), 16_000)
    yield Reader("a.wav", (folder / "a.wav").read_bytes(), read_waveform)
    soundfile.write(folder / "a.flac", 0.1 * np.sin(np.arange(1_600) / 9), 16_000)
    yield Reader("a.flac", (folder / "a.flac").read_bytes(), read_waveform)
    yield Reader("a.len", np.arange(1, 9, dtype="<u8").tobytes(), lambda path: detect_lengths(str(path), 36, "ids"))
    yield Reader("metrics.jsonl", as_jsonl(STEP), metrics)
    yield Reader("rollbacks.jsonl", as_jsonl(ROLLBACK), lambda path: read_rollbacks(path.parent))


def contents(reader: Reader) -> Iterator[tuple[str, bytes]]:
    """Hostile contents and their names."""
    good, rng = reader.good, random.Random(reader.file)
    yield "empty", b""
    yield "deep lists", b"[" * 100_000
    yield "deep objects", b'{"text":' * 100_000
    yield "nearly too deep", b'{"text":' * 90 + b"1" + b"}" * 90
    yield "deep where it fits", good.replace(b"0", b"[" * 900 + b"]" * 900, 1)
    yield "deep value", good.replace(b'"the sea"', b"[" * 980 + b"]" * 980, 1)
    aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(9))
    yield "aliases of aliases", good + aliases.encode()
    yield "merge keys", good + b"x: &x {a: 1}\ny: {<<: [*x, *x]}\n"
    for name, number in (("digits", b"9" * 5_000), ("large", b"9" * 400), ("1e999", b"1e999"), ("negative", b"-7")):
        for found in sorted({b"0.25", b"1.5", b"2", b"0", b"1"}):
            if found in good:
                yield f"{name} for {found.decode()}", good.replace(found, number)
    for word in (b"NaN", b"Infinity", b"null", b"1:1:1"):
        yield f"{word.decode()} for 1", good.replace(b"1", word)
    yield "NUL", good.replace(b"e", b"\0")
    yield "surrogate", good.replace(b"sea", rb"\ud800")
    yield "not UTF-8", good.replace(b"e", b"\xff")
    yield "UTF-16", good.decode("latin-1").encode("utf-16")
    yield "a long line", good.rstrip(b"\n") * (1 << 20 // max(len(good), 1))
    for piece in (
        b'text = "',
        b'"',
        b'" ',
        b"xmin = 1 ",
        b"1.",
        b"item [",
        b"\t",
        b",",
        b"- ",
        b"? ",
        b"&a ",
        b"{}",
        b"\n",
    ):
        yield f"many {piece!r}", good + piece * 100_000
        yield f"only {piece!r}", piece * 100_000
    if reader.file.endswith(".gz"):
        yield "gzip bomb", gzip.compress(bytes(200 << 20), 1)
        yield "cut off", good[:-9]
    if reader.file.endswith(".zst"):
        yield "zstd bomb", packed(bytes(200 << 20))
    for number in range(reader.mutations):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(changed) + 1)
            changed[place : place + rng.randrange(6)] = rng.randbytes(rng.randrange(6))
        yield f"mutation {number}", bytes(changed)


def make_special(path: Path) -> Iterator[str]:
    """Files that are none, one after the other at `path`."""
    os.mkfifo(path)
    yield "FIFO"
    path.unlink()
    for target in ("/dev/zero", "/dev/tty", path.name, "/proc/self/mem"):
        path.symlink_to(target)
        yield f"link to {target}"
        path.unlink()
    path.mkdir()
    yield "folder"
    path.rmdir()
    with open(path, "wb") as file:
        file.truncate(LARGE_BYTES)
    yield "a line without end"
    path.unlink()


def escapes(reader: Reader, path: Path, case: str) -> bool:
    """Whether reading raises what it should not."""
    print(f"{reader.file}: {case}", flush=True)
    try:
        reader.read(path)
    except (UserError, EntryError) as error:
        str(error).encode("utf-8", "backslashreplace")
        return False
    except BaseException:
        traceback.print_exc(limit=-6, file=sys.stdout)
        return True
    return False


def main(folder: Path) -> int:
    table = list(readers(folder))
    base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY_BYTES, base + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    failed = 0
    for number, reader in enumerate(table):
        place = folder / str(number)
        place.mkdir()
        os.chdir(place)
        for name, content in reader.other_files:
            (place / name).write_bytes(content)
        path = place / reader.file
        path.write_bytes(reader.good)
        if reader.file != "train.yaml":
            reader.read(path)  # that the good one is good is part of the test
        for case, content in contents(reader):
            path.write_bytes(content)
            failed += escapes(reader, path, case)
        path.unlink()
        for case in make_special(path):
            failed += escapes(reader, path, case)
    print(f"{failed} escaped")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
