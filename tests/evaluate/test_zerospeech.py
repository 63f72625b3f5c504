"""Numbers and submission files of the ZeroSpeech benchmarks.

The expected numbers were computed by the functions of zerospeech-benchmarks 0.9.4 (`LexicalTask`, `SyntacticTask` and
the task of prosAudit, with pandas 2.3.3) on the same gold files and on files like those that `write_submission` writes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from zerospeech_files import score, write_pauses, write_sentences, write_words

from tolktrain.evaluate.benchmarks.registry import BENCHMARKS
from tolktrain.evaluate.score_files import write_submission
from tolktrain.evaluate.tables import measured, pair_points

Write = Callable[[Path], list[str]]

# Measure: number, and of how many ids it is the mean.
EXPECTED: dict[str, tuple[Write, str, dict[str, tuple[float, int]]]] = {
    "swuggy": (
        write_words,
        "lexical/dev.txt",
        {"all": (0.4305555555555555, 12), "in vocabulary": (0.4444444444444444, 9)},
    ),
    "sblimp": (
        write_sentences,
        "syntactic/dev.txt",
        {"mean over pairs": (0.8636363636363636, 11), "mean over types": (0.753968253968254, 11)},
    ),
    "prosaudit": (write_pauses, "english_dev.txt", {"lexical": (0.4285714285714286, 7), "protosyntax": (0.5, 4)}),
}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_and_files_of_the_toolbox(name: str, shuffled: bool, tmp_path: Path) -> None:
    write, submission, expected = EXPECTED[name]
    names = write(tmp_path)
    if shuffled:  # of these rows, the toolbox would compare other sentences and pauses
        for path in tmp_path.rglob("gold.csv"):
            head, *rows = path.read_text().splitlines()
            order = np.random.default_rng(1).permutation(len(rows))
            path.write_text("\n".join([head, *(rows[place] for place in order)]) + "\n")
    [found] = BENCHMARKS[name].read(tmp_path).sets
    scores = {item: score(item) for item in found.items}
    won = pair_points(found.pairs, scores)
    numbers = {measure.name: measured(measure, found.pairs, won) for measure in found.measures}
    assert {key: (row["accuracy"], row["ids"]) for key, row in numbers.items() if row} == {
        key: (pytest.approx(value, rel=1e-12), ids) for key, (value, ids) in expected.items()
    }
    path = write_submission(tmp_path / "out", found, scores)
    assert path == tmp_path / "out" / submission
    lines = path.read_text().splitlines()
    assert sorted(line.split(" ")[0] for line in lines) == sorted(names)
    assert all(float(value) == score(item) for item, value in (line.split(" ") for line in lines))
