"""sBLIMP: a grammatical sentence against an ungrammatical one (ZeroSpeech sLM21, syntactic).

Two means are in use: the leaderboard's is over pairs, the SmolTolk authors' script takes the unweighted mean over
types.
"""

from pathlib import Path

from tolktrain.evaluate.benchmarks.base import Benchmark, Found, Measure, Published
from tolktrain.evaluate.benchmarks.gold import GoldLayout, Row, read_gold_benchmark
from tolktrain.evaluate.benchmarks.swuggy import ARCHIVE, WITHOUT_GOLD

PAIRS, TYPES = "mean over pairs", "mean over types"


def _labels(row: Row) -> dict[str, str]:
    return {"type": row["type"], "subtype": row["subtype"]}


LAYOUT = GoldLayout(
    task="syntactic",
    splits=("dev", "test"),
    columns=("type", "subtype"),
    key=("type", "subtype", "id"),
    labels=_labels,
    measures=(Measure(PAIRS), Measure(TYPES, by="type")),
    rules=("whole_mean", "whole_mean_closing_eos"),
    submission="syntactic/{split}.txt",
    archive=ARCHIVE,
    without_gold=WITHOUT_GOLD,
)


def read(folder: Path) -> Found:
    """The splits in `folder/syntactic`. Raises `UserError` as `read_gold_benchmark`."""
    return read_gold_benchmark(folder, LAYOUT)


BENCHMARK = Benchmark(
    "sblimp",
    "sBLIMP",
    ARCHIVE,
    read,
    tuple(
        Published(model, "test", PAIRS, "whole_mean_closing_eos", percent, "slamkit, docs/SLAM.md")
        for model, percent in (("Slam", 58.86), ("Slam (scaled)", 61.11))
    ),
)
