"""What is written is met by each usual way to say it, and keeps its place."""

from pathlib import Path

import pytest

from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.utterances import EntryError, Word

PAIRS = [
    tuple(line.split(" → "))
    for line in (Path(__file__).parent / "spoken_pairs.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def timed(spoken: str) -> list[Word]:
    return [Word(word, number, number + 1) for number, word in enumerate(spoken.split())]


@pytest.mark.parametrize(("written", "spoken"), PAIRS, ids=[written for written, _ in PAIRS])
def test_every_way_to_say_it_matches(written: str, spoken: str) -> None:
    for way in spoken.split(" | "):
        words = timed(f"so {way} then")
        aligned = align_given(f"so {written} then", words, "en")
        # Between its neighbours, it begins after the first given word and ends before the last.
        assert aligned.words == ("so", *written.split(), "then")
        assert aligned.ends[0] == 1 and aligned.ends[-2:].tolist() == [len(words) - 1, len(words)], way


@pytest.mark.parametrize("written", [written for written, _ in PAIRS])
def test_what_is_given_as_it_is_written_matches(written: str) -> None:
    aligned = align_given(f"so {written} then", timed(f"so {written} then"), "en")
    assert aligned.words[0] == "so" and aligned.words[-1] == "then"


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$5", "six dollars"),
        ("15", "one"),
        ("May 3", "may fourth"),
        ("Henry VIII", "henry the seventh"),
        ("10-20", "ten to thirty"),
        ("a 100", "a thousand"),
        ("100s", "thousands"),
        ("10 kg", "ten pounds"),
        ("1/2", "one third"),
        ("10:30", "ten twenty"),
        ("'90s", "eighties"),
        ("3.50", "three hundred fifty"),
        ("MIX it", "one thousand nine it"),
    ],
)
def test_another_number_does_not_match(written: str, spoken: str) -> None:
    with pytest.raises(EntryError, match="where the times have"):
        align_given(f"so {written} then", timed(f"so {spoken} then"), "en")
