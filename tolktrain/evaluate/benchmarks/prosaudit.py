"""prosAudit: a pause in its place against one inside a word (lexical) or a phrase (protosyntax)."""

from pathlib import Path

from tolktrain.evaluate.benchmarks.base import Benchmark, Found, Measure
from tolktrain.evaluate.benchmarks.gold import GoldLayout, Row, read_gold_benchmark

_ARCHIVE = "prosaudit-dataset of the ZeroSpeech toolbox (`zrc datasets:pull prosaudit-dataset`), which has gold.csv"


def _labels(row: Row) -> dict[str, str]:
    return {"type": row["type"]}


LAYOUT = GoldLayout(
    task="english",
    splits=("dev", "test"),
    columns=("type",),
    key=("type", "id"),
    labels=_labels,
    measures=tuple(Measure(name, where=("type", frozenset({name}))) for name in ("lexical", "protosyntax")),
    rules=("whole_mean",),
    submission="english_{split}.txt",
    archive=_ARCHIVE,
    without_gold="an archive of recordings alone",
)


def read(folder: Path) -> Found:
    """The splits in `folder/english`. Raises `UserError` as `read_gold_benchmark`."""
    return read_gold_benchmark(folder, LAYOUT)


BENCHMARK = Benchmark("prosaudit", "prosAudit", _ARCHIVE, read)
