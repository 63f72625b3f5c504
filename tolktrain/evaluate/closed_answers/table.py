"""The table of answers, in the terminal and for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from tolktrain.evaluate.terminal import print_table
from tolktrain.files.terminal import Console

COLUMNS = ("set", "question → answer", "judged by", "questions", "right, %", "base, %", "difference", "constant")
NUM_LEFT = 3


def answer_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of each row of answers.json."""
    for row in result["rows"]:
        has_base = "base" in row
        yield (
            row["set"],
            f"{row['asked_in']} → {row['answered_in']}",
            row["judge"],
            str(row["questions"]),
            _share(row, "accuracy", "low", "high"),
            _share(row, "base", "base_low", "base_high") if has_base else "–",
            f"{100 * row['difference']:+.1f} ({100 * row['difference_low']:+.1f}–{100 * row['difference_high']:+.1f})"
            if has_base
            else "–",
            f"{100 * row['constant']:.1f}",
        )


def answer_remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """What the columns mean, and the accuracies by kind of question."""
    yield (
        "right: answers with the right word. exact match: the first of the candidates' words in the likeliest text;"
        " likelihood: the candidate with the highest log-likelihood per token."
    )
    if result["base"] is not None:
        yield f"base: {result['base']}, the model before tuning, with the same prompts"
    yield (
        "constant: for each kind of question, always the word that is right most often. Intervals of 95 %, by bootstrap"
        " over stories."
    )
    for row in result["rows"]:
        kinds = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in row["by_kind"].items())
        yield f"{row['set']}, {row['asked_in']} → {row['answered_in']}, {row['judge']}: {kinds}"


def print_answers(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and the remarks."""
    title = "Answers to questions about a story, with 95 % intervals"
    print_table(title, COLUMNS, NUM_LEFT, answer_lines(result), answer_remarks(result), console)


def _share(row: Mapping[str, Any], name: str, low: str, high: str) -> str:
    return f"{100 * row[name]:.1f} ({100 * row[low]:.1f}–{100 * row[high]:.1f})"
