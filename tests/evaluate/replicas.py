"""Replicas of benchmarks, in the layouts in which the real ones are distributed, spoken by espeak-ng."""

import csv
import io
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

VOICES = ("en-us", "en-us+f3", "en-gb", "en-gb+m3")
WORDS = (  # the edges of the bands of frequency; 0: not in LibriSpeech
    ("garden", "[[g'A@d@p]]", 0),
    ("window", "[[w'Ind@f]]", 1),
    ("basket", "[[b'a:skId]]", 4),
    ("river", "[[r'Iv@k]]", 5),
    ("doctor", "[[d'0kt@m]]", 19),
    ("kitten", "[[k'It@f]]", 20),
    ("market", "[[m'A@kIp]]", 99),
    ("yellow", "[[j'El@g]]", 100),
    ("table", "[[t'eIb@f]]", 101),
)
SENTENCES = (
    ("agreement", "subject_verb", "The dogs run in the garden.", "The dogs runs in the garden."),
    ("agreement", "subject_verb", "The cat sees a red ball.", "The cat see a red ball."),
    ("agreement", "determiner", "These birds sing all day.", "This birds sing all day."),
    ("reflexive", "gender", "Mia hides herself at home.", "Mia hides himself at home."),
    ("npi", "only", "Only Ben has ever seen it.", "Even Ben has ever seen it."),
    ("npi", "nobody", "Nobody ever saw the kite.", "Somebody ever saw the kite."),
)
STORIES = (
    ("Mia the cat lost a red ball in the garden.", "She found the red ball again.", "He bought a new boat."),
    ("Ben the dog went to the river.", "Ben swam in the river.", "The kite was blue."),
)
CONTRADICTIONS = ("She found the blue boat at home.", "Ben flew over the river.")  # of the same story
PAUSES = (
    ("lexical", "Mia took the [[_:_:]] window home.", "Mia took the win [[_:_:]] dow home."),
    ("protosyntax", "The old dog [[_:_:]] ran away.", "The old [[_:_:]] dog ran away."),
)


@dataclass
class Replicas:
    """The folders, and which items are correct, by the ids that the readers give them."""

    root: Path
    correct: set[str] = field(default_factory=set)

    def folder(self, name: str) -> Path:
        """The folder of a benchmark."""
        return self.root / {"swuggy": "sLM21", "sblimp": "sLM21"}.get(name, name)


def speak(path: Path, text: str, voice: str = VOICES[0], *options: str) -> None:
    """A recording of a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["espeak-ng", "-v", voice, *options, "-w", str(path), text], check=True, capture_output=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    path.write_text(text.getvalue())


def speak_replicas(root: Path) -> Replicas:
    """All of them."""
    replicas = Replicas(root)
    names = _names()
    _speak_words(replicas, names)
    _speak_sentences(replicas, names)
    _speak_pauses(replicas, names)
    _speak_stories(replicas)
    _speak_contradictions(replicas)
    _speak_samples(replicas)
    _write_parquet(replicas)
    return replicas


def _names() -> Iterable[str]:
    """File names that say nothing, as in sLM21."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    rng = np.random.default_rng(5)
    while True:
        yield "".join(rng.choice(letters, 11))


def _speak_words(replicas: Replicas, names: Iterable[str]) -> None:
    folder, rows = replicas.folder("swuggy") / "lexical" / "dev", []
    for number, (word, other, frequency) in enumerate(WORDS):
        for voice in VOICES:
            for correct, text in ((1, word), (0, other)):
                name = next(iter(names))
                speak(folder / f"{name}.wav", text, voice)
                # The word of a non-word is empty in the public file.
                rows.append((name, number, voice, frequency, word if correct else "", "p h", len(word), correct))
                replicas.correct |= {name} if correct else set()
    write_csv(
        folder / "gold.csv", ["filename", "id", "voice", "frequency", "word", "phones", "length", "correct"], rows
    )


def _speak_sentences(replicas: Replicas, names: Iterable[str]) -> None:
    folder, rows = replicas.folder("sblimp") / "syntactic" / "test", []
    for number, (kind, subtype, *texts) in enumerate(SENTENCES):
        for correct, text in zip((1, 0), texts, strict=True):
            name = next(iter(names))
            speak(folder / f"{name}.wav", text)
            rows.append((name, number, VOICES[0], kind, subtype, text, correct))
            replicas.correct |= {name} if correct else set()
    write_csv(folder / "gold.csv", ["filename", "id", "voice", "type", "subtype", "transcription", "correct"], rows)


def _speak_pauses(replicas: Replicas, names: Iterable[str]) -> None:
    folder, rows = replicas.folder("prosaudit") / "english" / "dev", []
    for kind, *texts in PAUSES:
        for correct, text in zip((1, 0), texts, strict=True):
            name = next(iter(names))
            speak(folder / f"{name}.wav", text)
            rows.append((1, VOICES[0], kind, "pause", correct, name))
            replicas.correct |= {name} if correct else set()
    write_csv(folder / "gold.csv", ["id", "voice", "type", "subtype", "correct", "filename"], rows)


def _speak_stories(replicas: Replicas) -> None:
    whole, parts = replicas.folder("tstorycloze"), replicas.folder("parts") / "anna"
    for number, (prompt, *endings) in enumerate(STORIES):
        story = f"story-{number}"
        parts.mkdir(parents=True, exist_ok=True)
        (parts / f"{story}_mutual.txt").write_text(prompt)
        speak(parts / f"{story}_mutual.wav", prompt)
        for place, (side, ending) in enumerate(zip(("correct", "incorrect"), endings, strict=True)):
            file = f"{2 * number + place}_{story}_{side}.wav"
            speak(whole / file, f"{prompt} {ending}")
            (parts / f"{story}_{side}.txt").write_text(ending)
            speak(parts / f"{story}_{side}.wav", ending)
            replicas.correct |= {file, f"anna/{story}_correct"} if side == "correct" else set()


def _speak_contradictions(replicas: Replicas) -> None:
    for number, ((prompt, ending, _), other) in enumerate(zip(STORIES, CONTRADICTIONS, strict=True)):
        for place, (side, last) in enumerate((("correct", ending), ("incorrect", other))):
            file = f"{2 * number + place}_tale-{number}_{side}.wav"
            speak(replicas.folder("sstorycloze") / file, f"{prompt} {last}")
            replicas.correct |= {file} if side == "correct" else set()


def _write_parquet(replicas: Replicas) -> None:
    """A part of SALMon as in the data set of the hub: a row per sample, a column per side."""
    import pyarrow
    import pyarrow.parquet

    folder = replicas.folder("salmon") / "speaker_consistency"
    columns = {}
    for side, name in enumerate(("positive_audio", "negative_audio")):
        files = [folder / f"sample_{number}_{side}.wav" for number in range(len(STORIES))]
        columns[name] = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    into = replicas.folder("parquet") / "speaker_consistency"
    into.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), into / "train-00000-of-00001.parquet")
    rows = range(len(STORIES))
    replicas.correct |= {f"speaker_consistency/train-00000-of-00001.parquet/{row}/0" for row in rows}


_OTHERS = {  # how the second recording is spoken
    "speaker_consistency": ("en-gb+m3", "-p", "20"),
    "gender_consistency": ("en-us+f3",),
    "sentiment_consistency": ("en-us", "-p", "95", "-s", "240"),
    "rir_consistency": ("en-us",),
    "bg_alignment": ("en-us",),
}


def _speak_samples(replicas: Replicas) -> None:
    for part, voice in _OTHERS.items():
        folder = replicas.folder("salmon") / part
        for number, (text, *_) in enumerate(STORIES):
            speak(folder / f"sample_{number}_0.wav", text)
            samples, rate = soundfile.read(folder / f"sample_{number}_0.wav")
            if part == "bg_alignment":
                changed = 0.7 * samples + 0.05 * np.random.default_rng(number).normal(size=len(samples))
            elif part == "rir_consistency":  # a room in the second half
                echo = np.zeros(rate // 5)
                echo[:: rate // 40] = 0.6 ** np.arange(len(echo[:: rate // 40]))
                room = 0.5 * np.convolve(samples, echo)[: len(samples)]
                changed = np.concatenate([samples[: len(samples) // 2], room[len(samples) // 2 :]])
            else:
                speak(folder / f"sample_{number}_1.wav", text, *voice)
                other, _ = soundfile.read(folder / f"sample_{number}_1.wav")
                changed = np.concatenate([samples[: len(samples) // 2], other[len(other) // 2 :]])
            soundfile.write(folder / f"sample_{number}_1.wav", changed, rate)
            replicas.correct.add(f"{part}/sample_{number}_0.wav")


def write_released(folder: Path, dtype: str, seed: int = 0) -> None:
    """Two stories in the SmolTolk authors' form, with random ids; lengths of text in `dtype`."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"s{story}", kind, correctness)
        for story in range(2)
        for kind, correctness in (("continuation", "incorrect"), ("prompt", "-"), ("continuation", "correct"))
    ]
    write_csv(folder / "cross-modal_manifest.csv", ("pair_id", "type", "correctness"), rows)
    for name, size, eos, kind in (("smollm", 1000, 0, dtype), ("mhubert25hzl11", 500, 500, "<u2")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        sequences = [np.append(rng.integers(1, size, rng.integers(3, 9)), eos) for _ in rows]
        (folder / name / "test.bin").write_bytes(np.concatenate(sequences).astype("<u2").tobytes())
        (folder / name / "test.len").write_bytes(np.array([len(s) for s in sequences], kind).tobytes())
