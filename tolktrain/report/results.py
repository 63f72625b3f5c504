"""The tables of results that a run may have: benchmarks, generated speech, answers, text tasks, comparison, sweep."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tolktrain.errors import UserError
from tolktrain.evaluate import benchmark_table
from tolktrain.evaluate.closed_answers import table as answers_table
from tolktrain.evaluate.generation import table as generation_table
from tolktrain.evaluate.text import table as text_table
from tolktrain.report.ablations import grid, held_out_sets, sweep_picture
from tolktrain.report.rundata import DIRECTIONS, Row, RunData
from tolktrain.runs.paths import RunPaths


@dataclass(frozen=True)
class ResultTable:
    """A table as text."""

    columns: tuple[str, ...]
    num_left: int  # columns that are aligned to the left
    lines: list[tuple[str, ...]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    tables: list[ResultTable]
    remarks: list[str]
    figure: str | None = None
    figure_caption: str = ""


def result_sections(run: RunData) -> list[Section]:
    """The sections of what there is. Raises `UserError` if a file has not the expected content."""
    paths = RunPaths(run.directory)
    given: list[tuple[Row | None, Path, Callable[[Row], Section | None]]] = [
        (run.benchmarks, paths.benchmarks, _benchmarks),
        (run.generation, paths.generation, _generation),
        (run.answers, paths.answers, _answers),
        (run.text_tasks, paths.text_tasks, _text_tasks),
        (run.comparison, paths.comparison, _comparison),
        (run.sweep, paths.sweep, _sweep),
    ]
    sections = []
    for content, path, build in given:
        try:
            section = None if content is None else build(content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(
                f"{path} has not the expected content ({type(error).__name__}: {error}); delete it and make it again"
            ) from None
        if section is not None:
            sections.append(section)
    return sections


def _benchmarks(found: Row) -> Section | None:
    if not found["rows"]:
        return None
    table = ResultTable(benchmark_table.COLUMNS, benchmark_table.NUM_LEFT, list(benchmark_table.table_lines(found)))
    note = (
        f"Share of pairs whose correct item has the higher score by the rule, in percent, at step {found['step']}."
        " Intervals by bootstrap over pair ids. A tie gives the points in its column. Unigram and bigram: accuracies of"
        " n-grams of the training records by the same rule."
    )
    return Section("Benchmarks", [table], [note, *benchmark_table.remarks(found)])


def _generation(found: Row) -> Section:
    table = ResultTable(
        generation_table.COLUMNS, generation_table.NUM_LEFT, list(generation_table.generation_lines(found))
    )
    note = (
        "Prompts continued by the model and by a bigram of units, texts read by the model, and recordings, at step"
        f" {found['step']}. GenPPL: perplexity of the transcripts. auto-BLEU: share of word bigrams that occur again in"
        " a transcript. WER: word errors against the text. Seconds and units per second: without the prompt. Intervals"
        " by bootstrap over samples."
    )
    return Section("Generated speech", [table], [note, *generation_table.generation_remarks(found)])


def _answers(found: Row) -> Section:
    table = ResultTable(answers_table.COLUMNS, answers_table.NUM_LEFT, list(answers_table.answer_lines(found)))
    note = f"Share of right answers to questions about a story, in percent, at step {found['step']}."
    return Section("Answers", [table], [note, *answers_table.answer_remarks(found)])


def _text_tasks(found: Row) -> Section | None:
    if not found["rows"]:
        return None
    table = ResultTable(text_table.columns(found), text_table.NUM_LEFT, list(text_table.text_task_lines(found)))
    note = (
        f"Zero-shot accuracies in percent, by lm-evaluation-harness {found['harness']}, of {found['run']}"
        + (f" and of {found['against']}" if found["against"] is not None else "")
        + ". Intervals by bootstrap over items."
    )
    if found["against"] is not None:
        note += " p: McNemar's exact test, not corrected for the number of tasks."
    return Section("Text tasks", [table], [note])


_COMPARED = ("measure", "rule", "run", "accuracy", "difference", "95 % interval", "better : worse", "p")


def _comparison(found: Row) -> Section | None:
    lines = [*_compared(found["benchmarks"]), *_compared(found["choices"])]
    if not lines:
        return None
    first = found["runs"][0]["name"]
    note = (
        f"Difference: accuracy less that of {first} on the same items, with the interval of a paired bootstrap. Better"
        f" : worse: pair ids, or texts, in which the run has more and fewer points than {first}. p: McNemar's exact"
        " test, not corrected for the number of comparisons. comparison/compare.html has all tables."
    )
    return Section("Comparison with other runs", [ResultTable(_COMPARED, 3, lines)], [note, *found["remarks"]])


def _compared(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if "benchmark" in row:
            names = (f"{row['benchmark']}, {row['set']}, {row['measure']}", row["rule"])
        else:
            names = (f"choice on {row['set']}", DIRECTIONS.get(row["direction"], row["direction"]))
        for entry in row["runs"][1:]:
            paired = entry["against_first"]
            interval = f"{100 * paired['low']:+.1f} to {100 * paired['high']:+.1f}"
            p = "–" if paired["p"] is None else f"{paired['p']:.2g}"
            accuracy, difference = f"{100 * entry['accuracy']:.1f}", f"{100 * paired['difference']:+.1f}"
            counts = f"{paired['better']} : {paired['worse']}"
            yield (*names, entry["run"], accuracy, difference, interval, counts, p)


def _sweep(found: Row) -> Section | None:
    tables = []
    for name in held_out_sets(found):
        for kind, caption in (("rows", name), ("differences", f"{name}, difference from full; * interval excludes 0")):
            columns, lines = grid(found, kind, name)
            if lines:
                tables.append(ResultTable(columns, 1, lines, caption))
    if not tables:
        return None
    picture = sweep_picture(found)
    note = (
        f"Variants of the model, each after {found['tokens']:,} tokens ({found['step']:,} steps). Intervals of 95 %"
        " hold for other seeds and other items; they are not corrected for the number of comparisons."
    )
    caption = (
        "Differences from the full model with 95 % intervals. A loss is better to the left, an accuracy to the right."
    )
    return Section("Ablations", tables, [note], None if picture is None else Markup(picture), caption)
