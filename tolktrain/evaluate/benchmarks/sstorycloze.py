"""sStoryCloze: the ending of a story against StoryCloze's own wrong ending, spoken by one voice."""

from pathlib import Path

from tolktrain.evaluate.benchmarks.base import Benchmark, Found, Published
from tolktrain.evaluate.benchmarks.stories import read_stories

_ARCHIVE = "sStoryCloze of SpokenStoryCloze (whole stories), or a set with prompts and endings apart"


def read(folder: Path) -> Found:
    """Any layout of `read_stories`, which raises `UserError`."""
    return read_stories(folder, _ARCHIVE)


BENCHMARK = Benchmark(
    "sstorycloze",
    "sStoryCloze",
    _ARCHIVE,
    read,
    tuple(
        Published(model, "whole stories", "accuracy", "whole_mean_closing_eos", percent, "slamkit, docs/SLAM.md")
        for model, percent in (("Slam", 58.04), ("Slam (scaled)", 61.30))
    ),
)
