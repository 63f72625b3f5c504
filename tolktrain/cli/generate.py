"""`tolktrain generate`."""

from pathlib import Path

from tolktrain.cli.verb import verb_of_run
from tolktrain.runs.paths import RunPaths


def generate_samples(run_directory: Path) -> None:
    """Write the folder of samples."""
    from tolktrain.generate.run import generate

    print(f"{len(generate(run_directory))} files in {RunPaths(run_directory).samples}")


VERB = verb_of_run("continue spoken prompts with a trained model; write WAV files", generate_samples)
