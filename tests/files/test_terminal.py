"""What reaches a terminal or a log of files of strangers, on the way of each verb."""

import ast
import io
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import tolktrain.files.terminal
from tolktrain import cli
from tolktrain.data.records import DatasetInfo, Record, SpeechInfo
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.inspect.sequences import print_sequence
from tolktrain.inspect.spans import take_apart
from tolktrain.inspect.tables import print_header
from tolktrain.inspect.tokenizers import TextReader, Tokenizers
from tolktrain.prepare.job.progress import ProgressDisplay
from tolktrain.prepare.job.summary import Summary
from tolktrain.report import checkpoints
from tolktrain.runs.listing import Entry
from tolktrain.train.process import logging_to
from tolktrain.units.__main__ import main as make_tokenizer
from tolktrain.vocabulary import Vocabulary

# Writes to the clipboard, sets the title by C1, clears the screen, turns the direction, and is Rich's markup and emoji.
HOSTILE = "a\x1b]52;c;aGk=\x07b\x9d0;t\x9c\x1b[2J\u202e\u2066[bold][/x][link=file:///etc/passwd]:bomb:"


def _is_harmless(text: str) -> bool:
    # Besides line ends, three characters that words of some languages need.
    return all(
        c in "\n\t\u200c\u200d\u00ad" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    )


def _check(shown: str) -> None:
    assert _is_harmless(shown), repr(shown)
    # Lines may have been broken anywhere.
    together = "".join(shown.split())
    for part in (
        "\\x1b]52;c;aGk=",
        "\\x9d0;t\\x9c",
        "\\x1b[2J",
        "\\u202e\\u2066",
        "[/x][link=file:///etc/passwd]:bomb:",
    ):
        assert part in together, part


@pytest.fixture
def console() -> Console:
    """Wide, without colour, into memory."""
    return Console(file=io.StringIO(), width=400)


@pytest.fixture
def shown(console: Console) -> Callable[[], str]:
    """What was printed."""

    def text() -> str:
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return text


def _info() -> DatasetInfo:
    numbers: dict[str, Any] = dict.fromkeys(("num_records", "num_words", "num_text_tokens", "num_units"), 1)
    numbers |= {"hours": 1.0, "longest_text": 1, "longest_speech": 1}
    speech = SpeechInfo(name=HOSTILE, version=HOSTILE, num_units=3, frames_per_second=25, sha256=HOSTILE)
    return DatasetInfo(name=HOSTILE, split=HOSTILE, license=HOSTILE, speech=speech, **numbers)


def test_everything_that_rich_renders(console: Console, shown: Callable[[], str]) -> None:
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE, Text(HOSTILE, "bold"))
    for renderable in (HOSTILE, Text(HOSTILE), table):
        console.file = io.StringIO()
        console.print(renderable, soft_wrap=True)
        _check(shown())
    console.file = io.StringIO()
    console.rule(HOSTILE)
    console.print(HOSTILE, style="bold")
    _check(shown())


@given(st.text())
def test_no_text_gives_orders(text: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(text, Text(text))
    assert _is_harmless(console.file.getvalue())  # type: ignore[attr-defined]


def test_colours_and_bars_still_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), width=400, force_terminal=True, color_system="256")
    console.print(Text("red", "red"))
    with Progress(*tolktrain.files.terminal.spinner().columns, console=console) as progress:
        progress.add_task(HOSTILE, total=None)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[31mred\x1b[0m" in text and "\x1b[2K" in text
    assert "\\x1b]52;c;aGk=" in text and "[/x]" in text
    for order in ("\x1b]", "\x9d", "\x07", "\x1b[2J", "\u202e"):
        assert order not in text


def test_inspect(console: Console, shown: Callable[[], str]) -> None:
    print_header(console, _info(), HOSTILE, Tokenizers(None, None, HOSTILE, HOSTILE))
    _check(shown())
    console.file = io.StringIO()
    none = np.zeros(0, np.uint32)
    arrays: dict[str, Any] = {"word_text_ends": none, "word_unit_ends": none, "utterance_unit_ends": none}
    arrays |= {"units": np.zeros((0, 1), np.uint16), "run_lengths": np.zeros(0, np.uint16)}
    record = Record(
        HOSTILE, HOSTILE, text_ids=np.arange(5, dtype=np.uint32), utterance_text_ends=np.array([5], np.uint32), **arrays
    )

    class Reads(TextReader):
        def __call__(self, ids: Any) -> str:
            return HOSTILE

    apart = take_apart(record, "text", Vocabulary(7, 0, 50), 8, None, 0)  # type: ignore[arg-type]
    print_sequence(console, apart, 0, Reads(None), 25.0)
    _check(shown())
    assert shown().count("\\x1b]52") >= 3  # id, source and text


def test_prepare(console: Console, shown: Callable[[], str]) -> None:
    Summary(num_items=2, failed={HOSTILE: 1}, splits={HOSTILE: _info()}).show(HOSTILE, console)
    _check(shown())
    console.file = io.StringIO()
    ProgressDisplay(console).print_line(HOSTILE)
    _check(shown())


def test_checkpoints(console: Console, shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"stage": HOSTILE, "layout": HOSTILE, "metrics": {"loss": HOSTILE}}
    entries = [Entry(Path(HOSTILE), 1, "damaged", 1, 0.0, problem=HOSTILE, state=state)]
    monkeypatch.setattr(checkpoints, "list_checkpoints", lambda *_: entries)
    checkpoints.show_checkpoints(Path(HOSTILE), False, console)
    _check(shown())


@pytest.fixture
def _restored() -> Iterator[None]:
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(None)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("kind", [UserError, OSError])
def test_errors_of_any_verb(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(parsed: object) -> None:
        raise kind(HOSTILE)

    monkeypatch.setattr("tolktrain.cli.config.load", fail)
    assert cli.main(["config", "x.yaml"]) in (1, 2)
    _check(capsys.readouterr().err)


@pytest.mark.usefixtures("_restored")
def test_a_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", HOSTILE.replace("/", "")]) == 2
    error = capsys.readouterr().err
    assert _is_harmless(error) and "\\x1b]52" in error


@pytest.mark.usefixtures("_restored")
def test_defects_and_records_without_a_handler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(parsed: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr("tolktrain.cli.config.load", fail)
    with pytest.raises(ValueError) as caught:
        cli.main(["config", "x.yaml"])
    sys.excepthook(ValueError, caught.value, None)
    _check(capsys.readouterr().err)
    record = logging.LogRecord("tolktrain.data", logging.WARNING, "", 0, HOSTILE, None, None)
    assert logging.lastResort is not None
    _check(logging.lastResort.format(record))


def test_log_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(tmp_path / "logs" / "rank-00000.log", 0):
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("tolktrain.data").warning("%s", HOSTILE, exc_info=True)
    _check(capsys.readouterr().err)
    text = (tmp_path / "logs" / "rank-00000.log").read_text()
    _check(text)
    assert text.count("\\x1b]52") == 2  # the message and the traceback


def test_tokenizers_of_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = HOSTILE.encode()
    (tmp_path / "km").write_bytes(b"\x80\x04\x8c" + bytes([len(name)]) + name + b"\x8c\x01x\x93.")
    given = ["hubert", str(tmp_path / "made"), "--model", "m", "--layer", "1", "--kmeans", str(tmp_path / "km")]
    assert make_tokenizer(given) == 2
    _check(capsys.readouterr().err)


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            yield node


def _imported(tree: ast.AST, module: str, names: tuple[str, ...]) -> Iterator[str]:
    """How a file calls what it imports from a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            yield from (alias.asname or alias.name for alias in node.names if alias.name in names)


def test_nothing_else_writes_to_the_terminal(repository: Path) -> None:
    """Rich's own console, and its markup of text, are used in one file only, and no log has another formatter."""
    own = {"terminal.py", "printable.py"}
    for path in sorted((repository / "tolktrain").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert not list(_calls(tree, "from_markup")) + list(_calls(tree, "get_console")), path
        for call in _calls(tree, "TextColumn"):
            assert any(keyword.arg == "markup" for keyword in call.keywords), path
        for name in _imported(tree, "rich.progress", ("Progress", "track")):
            for call in _calls(tree, name):
                assert any(keyword.arg == "console" for keyword in call.keywords), path
        if path.parent.name == "files" and path.name in own:
            continue
        assert "rich.console import" not in text and "rich import print" not in text, path
        assert "rich.markup" not in text and not list(_calls(tree, "Formatter")), path
