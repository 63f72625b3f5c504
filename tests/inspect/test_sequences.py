"""What is printed of a sequence, to the letter."""

from collections.abc import Callable

from tokenizers import Tokenizer

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Record
from tolktrain.files.terminal import Console
from tolktrain.inspect.sequences import print_legend, print_sequence
from tolktrain.inspect.spans import TakenApart, take_apart
from tolktrain.inspect.tokenizers import TextReader
from tolktrain.vocabulary import Vocabulary

TWO_WORDS = InterleavingConfig(text_words=(2, 2), speech_words=(2, 2))
Make = Callable[..., Record]
Printed = Callable[[], str]


def apart_of(record: Record, strategy: Strategy, length: int, first: str) -> TakenApart:
    """A sequence from the record's beginning whose first span is of the kind `first`."""
    for seed in range(200):
        apart = take_apart(record, strategy, Vocabulary(7, 0, 50), length, TWO_WORDS, seed)
        span = next(span for span in apart.spans if len(span.places))
        if apart.spans[0].kind == first and span.places[0] == 0:
            return apart
    raise AssertionError("no such sequence")


def test_interleaved(console: Console, printed: Printed, make_fable: Make, word_tokenizer: Tokenizer) -> None:
    apart = apart_of(make_fable(), "interleaved", 15, "speech")
    print_sequence(console, apart, 7, TextReader(word_tokenizer), 25.0)
    assert (
        printed()
        == """
Record 7  fable  aesop
        interleaved · 14 tokens · 2 of padding · 11 of 15 targets scored
     0  speech  0.00 – 0.80 s · 2 words · 4 units · 4 tokens, 3 scored
        0.00 [An] 0.40 [old]
     4  <switch>
     5  text  2 words · 3 tokens, scored
        hare <eos> met
     8  <switch>
     9  speech  1.60 – 2.40 s · 2 words · 4 units · 5 tokens, scored
        1.60 [two] 2.00 [frogs] <eos>
    14  <pad> × 2"""
    )


def test_a_word_that_is_cut_off(console: Console, printed: Printed, make_fable: Make) -> None:
    apart = apart_of(make_fable(), "interleaved", 11, "speech")
    print_sequence(console, apart, 0, TextReader(None), 25.0)
    assert printed().splitlines()[-2:] == [
        "     9  speech  1.60 – 2.20 s · 2 words · 3 units · 3 tokens, scored",
        "        1.60 [5] 2.00 [6…]",
    ]


def test_prefix_without_alignment_shows_utterances(
    console: Console, printed: Printed, make_fable: Make, word_tokenizer: Tokenizer
) -> None:
    apart = apart_of(make_fable(aligned=False), "recognition", 24, "prefix")
    print_sequence(console, apart, 0, TextReader(word_tokenizer), 25.0)
    assert printed().splitlines()[2:] == [
        "        recognition · 24 tokens · 1 of padding · 8 of 24 targets scored",
        "     0  <prefix>",
        "     1  speech  0.00 – 1.20 s · 6 units · 6 tokens, not scored",
        "        0.00 [An old hare]",
        "     7  <prefix-end>",
        "     8  text  4 tokens, scored",
        "        An old hare <eos>",
        "    12  <prefix>",
        "    13  speech  1.20 – 2.40 s · 6 units · 6 tokens, not scored",
        "        1.20 [met two frogs]",
        "    19  <prefix-end>",
        "    20  text  4 tokens, scored",
        "        met two frogs <eos>",
        "    24  <pad>",
    ]


def test_speech_without_text_shows_units(console: Console, printed: Printed, make_fable: Make) -> None:
    apart = apart_of(make_fable(aligned=False, text=False), "speech", 9, "speech")
    print_sequence(console, apart, 0, TextReader(None), 50.0)
    assert printed().splitlines()[3:] == [
        "     0  speech  0.00 – 0.90 s · 9 units · 10 tokens, 9 scored",
        "        0.00 [20 21 22 23 24 25] <eos> 0.60 [26 27 28…]",
    ]


def test_no_line_is_wider_than_the_console(console: Console, printed: Printed, make_fable: Make) -> None:
    console.width = 30
    apart = apart_of(make_fable(aligned=False), "synthesis", 24, "prefix")
    print_sequence(console, apart, 0, TextReader(None), 25.0)
    print_legend(console)
    bodies = [line for line in printed().splitlines() if line.startswith(" " * 8)]
    assert bodies and max(map(len, bodies)) <= 30


def test_colour_adds_nothing_but_colour(make_fable: Make, word_tokenizer: Tokenizer) -> None:
    apart = apart_of(make_fable(), "interleaved", 15, "text")
    shown = []
    for colours in ("truecolor", None):
        console = Console(width=80, color_system=colours, force_terminal=bool(colours), record=True, quiet=False)  # type: ignore[arg-type]
        with console.capture() as capture:
            print_legend(console)
            print_sequence(console, apart, 1, TextReader(word_tokenizer), 25.0)
        shown.append((capture.get(), console.export_text()))
    (coloured, first), (plain, second) = shown
    assert "\x1b[" in coloured and "\x1b[" not in plain
    assert first == second
