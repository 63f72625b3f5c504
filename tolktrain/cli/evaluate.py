"""`tolktrain evaluate`."""

from pathlib import Path

from tolktrain.cli.verb import verb_of_run


def evaluate_run(run_directory: Path) -> None:
    """Write evaluation.json."""
    from tolktrain.evaluate.run import evaluate

    evaluate(run_directory)


VERB = verb_of_run("measure a trained run on its held-out sets", evaluate_run)
