"""The table of generated speech, in the terminal and for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from tolktrain.evaluate.terminal import print_table
from tolktrain.files.terminal import Console

COLUMNS = ("speech", "samples", "GenPPL", "auto-BLEU, %", "WER, %", "s", "units/s")
NUM_LEFT = 1
_NAMES = {
    "generated": "the model's",
    "bigram": "a bigram's",
    "synthesis": "text read",
    "resynthesis": "from units",
    "recording": "recording",
}


def generation_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of each row of generation.json."""
    for row in result["rows"]:
        speed = row["units_per_second"]
        yield (
            _NAMES.get(row["kind"], row["kind"]),
            str(row["samples"]),
            _figure(row, "genppl", 1.0),
            _figure(row, "auto_bleu", 100.0),
            _figure(row, "wer", 100.0),
            f"{row['seconds']:.2f}",
            "–" if speed is None else f"{speed:.1f}",
        )


def generation_remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """How the speech was made, and what was left out."""
    settings = result["settings"]
    yield f"prompts: the first {settings['prompt_seconds']:g} s of {settings['folder']}"
    yield (
        f"continuations: at most {settings['units']} units at temperature {settings['temperature']:g} from the"
        f" {settings['top_k']} likeliest, seed {settings['seed']}"
    )
    judges = [
        f"{name} {result[key]['folder']}"
        for key, name in (("asr", "speech recognition"), ("lm", "LM"))
        if result[key] is not None
    ]
    if judges:
        yield "judges: " + ", ".join(judges)
    if result["unreadable"]:
        yield f"{result['unreadable']} recordings could not be read, and are left out"
    for row in result["rows"]:
        for key, words in (("empty", "transcripts are empty"), ("unscored", "transcripts are too short for GenPPL")):
            if row.get(key):
                yield f"{_NAMES.get(row['kind'], row['kind'])}: {row[key]} {words}"


def print_generation(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and the remarks."""
    title = "Generated speech, with 95 % intervals; seconds and units without the prompt"
    print_table(title, COLUMNS, NUM_LEFT, generation_lines(result), generation_remarks(result), console)


def _figure(row: Mapping[str, Any], name: str, scale: float) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    return f"{scale * value:.1f} ({scale * row[f'{name}_low']:.1f} – {scale * row[f'{name}_high']:.1f})"
