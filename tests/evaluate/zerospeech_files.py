"""Gold files as ZeroSpeech distributes them, recordings without content, and scores with ties, all without chance."""

from pathlib import Path

from replicas import write_csv

FREQUENCIES = (0, 0, 0, 1, 4, 5, 19, 20, 99, 100, 101, 3)
KINDS = (("agreement", "a1", 5), ("agreement", "a2", 2), ("npi", "n1", 3), ("reflexive", "r1", 1))


def score(name: str) -> float:
    """A log-likelihood of a file, one of seven."""
    return -float(sum(place * ord(letter) for place, letter in enumerate(name, start=1)) % 7) / 2


def write_words(root: Path) -> list[str]:
    """lexical/dev: words in one to four voices; returns the names of the recordings."""
    columns = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct")
    rows = [
        (f"w{n}{voice}{correct}", n, voice, frequency, f"word{n}" if correct else "", "a b", 3 + n % 4, correct)
        for n, frequency in enumerate(FREQUENCIES)
        for voice in "ABCD"[: 1 + n % 4]
        for correct in (1, 0)
    ]
    return _write(root / "lexical" / "dev", columns, rows)


def write_sentences(root: Path) -> list[str]:
    """syntactic/dev: the correct and the incorrect rows in the same order, as the toolbox needs them."""
    columns = ("filename", "id", "voice", "type", "subtype", "transcription", "correct")
    rows = [
        (f"s{subtype}{n}{voice}{correct}", f"{subtype}-{n}", voice, kind, subtype, f"text {n}", correct)
        for correct in (1, 0)
        for kind, subtype, count in KINDS
        for n in range(count)
        for voice in ("A", "B")
    ]
    return _write(root / "syntactic" / "dev", columns, rows)


def write_pauses(root: Path) -> list[str]:
    """english/dev, the rows in the order that the toolbox needs."""
    columns = ("filename", "id", "voice", "type", "subtype", "correct")
    rows = [
        (f"p{kind}{n}{correct}", n, "A", kind, "pause", correct)
        for correct in (1, 0)
        for kind, count in (("lexical", 7), ("protosyntax", 4))
        for n in range(count)
    ]
    return _write(root / "english" / "dev", columns, rows)


def _write(folder: Path, columns: tuple[str, ...], rows: list[tuple]) -> list[str]:
    write_csv(folder / "gold.csv", columns, rows)
    for name, *_ in rows:
        (folder / f"{name}.wav").touch()
    return [row[0] for row in rows]
