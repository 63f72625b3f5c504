"""`tolktrain report`: the page and the table of a run."""

from pathlib import Path

from tolktrain.files.writing import replace_file
from tolktrain.report.page import render
from tolktrain.report.rundata import read_run
from tolktrain.report.summary import print_summary
from tolktrain.runs.paths import RunPaths


def report(run_dir: str | Path) -> Path:
    """Write `report.html` into the run directory, print the summary, and return the page's path.

    Works on an unfinished run too: what is missing is named together with the verb that makes it. Raises `UserError`
    where the folder is no run directory.
    """
    run = read_run(run_dir)
    path = RunPaths(run.directory).report
    replace_file(path, render(run))
    print_summary(run_dir)
    return path
