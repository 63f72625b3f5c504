"""The description of a data set and its statistics, as tables for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from tolktrain.data.records import DatasetInfo
from tolktrain.files.terminal import Console
from tolktrain.inspect.statistics import QUANTITIES, Statistics
from tolktrain.inspect.tokenizers import Tokenizers


def print_header(console: Console, info: DatasetInfo, address: str, tokenizers: Tokenizers) -> None:
    """The content of dataset.json, and the tokenizers."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="grey62", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("data set", Text(info.name, "bold").append(f", split {info.split}, in {address}", "not bold"))
    table.add_row("licence", info.license)
    table.add_row("size", f"{info.num_records:,} records, {info.hours:,.2f} hours, {info.num_words:,} aligned words")
    table.add_row("tokens", f"{info.num_text_tokens:,} text ids, {info.num_units:,} units, without EOS")
    table.add_row("longest", f"{info.longest_text:,} text ids, {info.longest_speech:,} units, with EOS")
    if info.conversations is not None:
        found = info.conversations
        table.add_row(
            "conversations",
            f"{found.num_conversations:,} of the kind {found.kind}, {found.num_turns:,} turns of"
            f" {', '.join(found.roles)}; packed for {found.sequence_length:,} positions and"
            f" {', '.join(found.strategies)}",
        )
    if info.text is not None:
        made = f"{info.text.vocab_size:,} ids, EOS {info.text.eos_id}, sha256 {info.text.sha256[:12]}"
        table.add_row("text tokenizer", f"{made}\n{tokenizers.text_note}")
    if info.speech is not None:
        speech = info.speech
        codebooks = f"{speech.num_codebooks} codebooks of " if speech.num_codebooks > 1 else ""
        made = f"{speech.name} {speech.version}, {codebooks}{speech.num_units:,} units"
        made += f", {speech.frames_per_second:g} frames per second, sha256 {speech.sha256[:12]}"
        table.add_row("speech tokenizer", f"{made}\n{tokenizers.speech_note}")
    console.print(table, highlight=False)


def print_statistics(console: Console, statistics: Statistics, strategy: str, sequence_length: int) -> None:
    """Rates, distributions, and the use of units."""
    info = statistics.info
    console.print()
    console.print(
        Text("Statistics", "bold").append(
            f" of {statistics.num_records:,} of {info.num_records:,} records; spans and scored tokens of one sequence"
            f" of {sequence_length:,} from each, {strategy}",
            "not bold",
        )
    )
    _print_rates(console, statistics)
    _print_distributions(console, statistics)
    _print_units(console, statistics)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _print_rates(console: Console, statistics: Statistics) -> None:
    rates = statistics.rates()
    table = _table("together", "")
    rows = {
        "hours": ("speech, hours", ".2f"),
        "units_per_second": ("units per second, repeats collapsed", ".2f"),
        "words_per_second": ("words per second", ".2f"),
        "units_per_word": ("units per word", ".2f"),
        "scored_share": ("scored, of all targets", ".1%"),
        "scored_text_share": ("    as text", ".1%"),
        "scored_speech_share": ("    as speech", ".1%"),
    }
    for name, (label, form) in rows.items():
        if name in rates:
            table.add_row(label, format(rates[name], form))
    console.print(table)


def _print_distributions(console: Console, statistics: Statistics) -> None:
    table = _table("distributions", "mean", "median", "99 %", "longest", "number")
    for name, values in statistics.distributions().items():
        figures = (_figure(value) for value in (values.mean, values.median, values.percentile_99, values.largest))
        table.add_row(QUANTITIES[name], *figures, f"{values.count:,}")
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:.2f}"


def _print_units(console: Console, statistics: Statistics) -> None:
    uses = statistics.unit_use()
    if not uses:
        return
    table = _table("codebook", "units used", "entropy, bits", "perplexity")
    table.add_column("most frequent units")
    for codebook, use in enumerate(uses, start=1):
        frequent = ", ".join(f"{unit} ({100 * share:.1f} %)" for unit, share in use.most_frequent)
        table.add_row(
            str(codebook),
            f"{use.used} of {use.num_units}",
            f"{use.entropy_bits:.2f}",
            f"{use.perplexity:.0f}",
            frequent,
        )
    console.print(table)
