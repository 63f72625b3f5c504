"""`tolktrain report`."""

from pathlib import Path

from tolktrain.cli.verb import verb_of_run


def write_report(run_directory: Path) -> None:
    """Write report.html and print the table."""
    from tolktrain.report.run import report

    report(run_directory)


VERB = verb_of_run("write a run's report.html and print its table", write_report)
