"""sWUGGY: a word against a non-word that sounds like one (ZeroSpeech sLM21, lexical).

Measures as in the ZeroSpeech toolbox: `all` is the mean over pairs; `in vocabulary` leaves out the pairs whose word
does not occur in LibriSpeech, and those without a frequency.
"""

import math
from pathlib import Path

from tolktrain.evaluate.benchmarks.base import Benchmark, Found, Measure
from tolktrain.evaluate.benchmarks.gold import GoldLayout, Row, read_gold_benchmark

# Lower ends of right-open bands, with the toolbox's labels, which are off by one: a frequency of 5 is in "6-20".
_BANDS = ((0.0, "oov"), (1.0, "1-5"), (5.0, "6-20"), (20.0, "21-100"), (100.0, ">100"))
_IN_VOCABULARY = frozenset(label for _, label in _BANDS[1:])
ARCHIVE = "sLM21-dataset of the ZeroSpeech toolbox (`zrc datasets:pull sLM21-dataset`), which has gold.csv"
WITHOUT_GOLD = "the archive of the 2021 challenge (zerospeech2021-dataset.zip)"


def frequency_band(text: str) -> str:
    """The toolbox's label of a frequency in LibriSpeech; "" if it is no number or negative."""
    try:
        frequency = float(text)
    except ValueError:
        return ""
    if math.isnan(frequency) or frequency < 0:
        return ""
    return [label for least, label in _BANDS if frequency >= least][-1]


def _labels(row: Row) -> dict[str, str]:
    return {"frequency": frequency_band(row["frequency"])}


LAYOUT = GoldLayout(
    task="lexical",
    splits=("dev", "test"),
    columns=("frequency",),
    key=("id",),
    labels=_labels,
    measures=(Measure("all"), Measure("in vocabulary", where=("frequency", _IN_VOCABULARY))),
    rules=("whole_mean",),
    submission="lexical/{split}.txt",
    archive=ARCHIVE,
    without_gold=WITHOUT_GOLD,
)


def read(folder: Path) -> Found:
    """The splits in `folder/lexical`. Raises `UserError` as `read_gold_benchmark`."""
    return read_gold_benchmark(folder, LAYOUT)


BENCHMARK = Benchmark("swuggy", "sWUGGY", ARCHIVE, read)
