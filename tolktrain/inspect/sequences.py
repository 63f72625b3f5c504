"""Sequences as the model sees them, printed span by span; words and marks repeat all that colour shows."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from rich.text import Text

from tolktrain.data.records import Record
from tolktrain.files.terminal import Console
from tolktrain.inspect.spans import EOS, Part, Span, TakenApart, part_ends, part_text, parts_of
from tolktrain.inspect.tokenizers import TextReader

Seconds = npt.NDArray[np.float64]  # [n + 1]: when each unit begins, and the last one ends

TEXT, SPEECH, TIME, MARK, UNSCORED = "bold cyan", "black on orange1", "orange1", "bold magenta", "dim"
HEAD = "grey62"
INDENT = 8
SHOWN_UNITS = 6  # ids of a stretch whose words are not known
_MARKS = {"prefix": "<prefix>", "prefix-end": "<prefix-end>", "switch": "<switch>", "padding": "<pad>"}


def print_legend(console: Console) -> None:
    """The legend of colours and marks."""
    legend = Text("Left: position in the sequence. ", style=HEAD)
    legend.append("text", TEXT).append("; speech: ")
    legend.append("1.20 ", TIME).append("[word]", SPEECH)
    legend.append(" second of the record and the word spoken, … where it is cut off; ")
    legend.append("<eos>", MARK).append(" end of an utterance; ")
    legend.append("<switch> <prefix> <prefix-end> <|role|> <pad>", MARK).append(" never scored; ")
    legend.append("dim, “not scored”", UNSCORED).append(": the model sees it but is not scored on it")
    legend.append(" (nor on the first token).")
    console.print(legend)


def print_sequence(console: Console, apart: TakenApart, number: int, text: TextReader, rate: float) -> None:
    """Print the sequence of record `number`; `rate` is frames per second."""
    record, sequence = apart.record, apart.sequence
    console.print(Text(f"\nRecord {number}  {record.id}", style="bold").append(f"  {record.source}", "not bold"))
    details = [sequence.strategy, f"{sequence.length} tokens"]
    if len(sequence.document_starts) > 1:
        details.append(f"{len(sequence.document_starts)} documents")
    if sequence.length < len(sequence.scored):
        details.append(f"{len(sequence.scored) - sequence.length} of padding")
    details.append(f"{apart.num_scored} of {len(sequence.scored) - 1} targets scored")
    console.print(Text(" " * INDENT + " · ".join(details), style=HEAD))
    seconds: Seconds = np.concatenate(([0], np.cumsum(record.run_lengths, dtype=np.int64))) / rate
    for span in apart.spans:
        _print_span(console, span, record, text, seconds)


def _print_span(
    console: Console,
    span: Span,
    record: Record,
    text: TextReader,
    seconds: Seconds,
) -> None:
    head = Text(f"{span.begin:>{INDENT - 2}}  ", style=HEAD)
    if span.kind not in ("text", "speech"):
        head.append(span.name or _MARKS[span.kind], MARK)
        head.append(f" × {span.num_tokens}" if span.num_tokens > 1 else "")
        console.print(head)
        return
    head.append(span.kind, TEXT if span.kind == "text" else TIME)
    head.append("  " + " · ".join(_details(span, record, seconds)))
    console.print(head)
    pieces = _text_pieces(span, record, text) if span.kind == "text" else _speech_pieces(span, record, text, seconds)
    for line in _lines(pieces, console.width - INDENT - 1):
        if not span.num_scored:
            line.stylize(UNSCORED)
        console.print(Text(" " * INDENT) + line, soft_wrap=True)


def _lines(pieces: Iterable[Text], width: int) -> Iterator[Text]:
    """The pieces with a space between them, in lines; only a piece longer than a line is broken itself."""
    line = Text()
    for piece in pieces:
        for part in [piece] if piece.cell_len <= width else piece.split(" "):
            if line and line.cell_len + 1 + part.cell_len > width:
                yield line
                line = Text()
            line = line + Text(" ") + part if line else part
    if line:
        yield line


def _details(span: Span, record: Record, seconds: Seconds) -> Iterator[str]:
    inside = span.places[span.places >= 0]
    if span.kind == "speech" and len(inside):
        yield f"{seconds[inside[0]]:.2f} – {seconds[inside[-1] + 1]:.2f} s"
    if record.is_aligned and record.kind == "passage":
        ends = record.word_unit_ends if span.kind == "speech" else record.word_text_ends
        words = sum(part.number >= 0 for part in parts_of(span, ends))
        yield _counted(words, "word")
    if span.kind == "speech":
        yield _counted(span.num_content, "unit")
    scored = {0: "not scored", span.num_tokens: "scored"}.get(span.num_scored, f"{span.num_scored} scored")
    yield f"{_counted(span.num_tokens, 'token')}, {scored}"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _text_pieces(span: Span, record: Record, text: TextReader) -> Iterator[Text]:
    for part in parts_of(span, record.utterance_text_ends):
        if part.number == EOS:
            yield Text("<eos>", MARK)
            continue
        if record.is_aligned:
            # In an interleaved sequence utterances normally continue in another span; words do not.
            whole = {0, *part_ends(record)[0].tolist()}
            part = replace(part, cut_before=part.begin not in whole, cut_after=part.end not in whole)
        shown = _cut(text(record.text_ids[part.begin : part.end]), part)
        yield from (Text(word, TEXT) for word in shown.split())


def _speech_pieces(span: Span, record: Record, text: TextReader, seconds: Seconds) -> Iterator[Text]:
    for part in parts_of(span, part_ends(record)[1]):
        if part.number == EOS:
            yield Text("<eos>", MARK)
            continue
        ids = part_text(record, part.number) if record.has_text else record.text_ids
        if len(ids):
            shown = text(ids)
        else:
            units = record.units[part.begin : part.end]
            shown = " ".join("+".join(map(str, row)) for row in units[:SHOWN_UNITS].tolist())
            shown += f" … {len(units)} units" if len(units) > SHOWN_UNITS else ""
        piece = Text(f"{seconds[part.begin]:.2f} ", TIME)
        # Dimmed text on a bright block could not be read.
        piece.append(f"[{_cut(shown, part)}]", SPEECH if span.num_scored else TIME)
        yield piece


def _cut(shown: str, part: Part) -> str:
    return f"{'…' if part.cut_before else ''}{shown}{'…' if part.cut_after else ''}"
