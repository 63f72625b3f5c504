"""Configurations that ask for more time, memory or stack than a configuration needs, and values that nobody can use."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tolktrain.config.document import parse, read_document, write_document
from tolktrain.errors import UserError

Mistakes = Callable[..., str]


def aliases(levels: int, width: int, scalar: str = '"lol"') -> str:
    """A list of lists of lists, each named once and repeated."""
    lines = [f"a0: &a0 [{','.join([scalar] * width)}]"]
    lines += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_aliases_of_aliases_end_soon(tmp_path: Path) -> None:
    """378 bytes took more than a minute and gigabytes. In a process with limits, so that a relapse is a failure."""
    path = tmp_path / "bomb.yaml"
    path.write_text(aliases(7, 9))
    assert path.stat().st_size < 500

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    command = [sys.executable, "-m", "tolktrain", "config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and f"error: {path}:" in done.stderr
    assert "counting what aliases repeat" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("width", [2, 9, 60])
@pytest.mark.parametrize("scalar", ["1", f'"{"x" * 3000}"'])
def test_what_aliases_build_is_counted_whatever_their_shape(width: int, scalar: str) -> None:
    levels = 30 if width == 2 else 8
    with pytest.raises(UserError, match=r"^bomb\.yaml:\d+: it holds more than 50,000 values or 4,194,304 characters"):
        parse(aliases(levels, width, scalar), Path("bomb.yaml"))


def test_aliases_that_repeat_little_are_copies() -> None:
    tree = parse("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]\n", Path("a.yaml"))
    assert tree.plain() == {"a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": [{"x": [1, 2]}] * 2}
    assert tree.children["b"] is not tree.children["a"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "a: " + "{b: " * 5_000,
        "? " * 5_000,
        "".join(" " * level + "a:\n" for level in range(1_200)),
        "a: &a " + "[" * 60 + "]" * 60 + "\nb: " + "[" * 60 + "*a" + "]" * 60,
    ],
    ids=["lists", "mappings", "keys", "blocks", "through an alias"],
)
def test_deep_nesting(small: Path, mistakes_of: Mistakes, text: str) -> None:
    small.write_text(text)
    assert "nested deeper than 100 levels" in mistakes_of(small)
    assert mistakes_of(small).startswith("small.yaml:")


def test_as_many_values_as_a_file_can_hold(small: Path, mistakes_of: Mistakes) -> None:
    small.write_text("a: [" + "1," * 60_000 + "]")
    assert mistakes_of(small).startswith("small.yaml:1: not valid YAML: it holds more than 50,000 values")
    small.write_text("# " + "x" * (1 << 20))
    assert "larger than the 1048576 bytes" in mistakes_of(small)
    small.write_text("train:\n" + "".join(f"  global_batch_size{i}: 1\n" for i in range(5_000)))
    assert mistakes_of(small).count("\n") == 50 and ": 50 mistakes and more" in mistakes_of(small)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 5_000, "has more than 100 characters"),
        ("0b" + "1" * 500_000, "has more than 100 characters"),
        ("1:" * 200_000 + "1", "has more than 100 characters"),
        ("9" * 50, "beyond the whole numbers of 64 bits"),
        ("-9223372036854775809", "beyond the whole numbers of 64 bits"),
        ("!!bool x", "'x' cannot be read"),
        ('!!int ""', "'' cannot be read"),
        ("!!timestamp x", "'x' cannot be read"),
        (r'"a\0b"', "holds a character that no file or name can have"),
        (r'"\ud800"', "holds a character that no file or name can have"),
        ("1e999", "got inf"),
        ("~nobody-of-this-name/x", "expected a whole number"),
    ],
)
def test_values_that_nobody_can_use(small: Path, mistakes_of: Mistakes, value: str, message: str) -> None:
    assert message in mistakes_of(small, f"train.max_steps={value}")
    small.write_text(small.read_text().replace("  sequence_length: 64\n", f"  sequence_length: {value}\n"))
    assert message in mistakes_of(small)
    assert len(mistakes_of(small)) < 500


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5_000])
def test_paths_that_no_file_can_have(small: Path, mistakes_of: Mistakes, path: str) -> None:
    assert "train.max_steps" in mistakes_of(small, f"data.text_tokenizer={path}", "train.max_steps=x")
    Path("above.yaml").write_text(f"base: {path}\n")
    problem = "there is no such user" if path.startswith("~") else "which does not exist"
    assert problem in mistakes_of("above.yaml")


def test_overrides_are_bounded_too(small: Path, mistakes_of: Mistakes) -> None:
    assert "deeper than 100 levels" in mistakes_of(small, "a" + ".a" * 20_000 + "=1")
    assert "deeper than 100 levels" in mistakes_of(small, "train.max_steps=" + "[" * 20_000)
    bomb = "{" + ", ".join(line for line in aliases(7, 9).splitlines()) + "}"
    assert "counting what aliases repeat" in mistakes_of(small, f"data.sets={bomb}")


def test_bases_that_double(small: Path, mistakes_of: Mistakes) -> None:
    for level in range(40):
        Path(f"b{level}.yaml").write_text(f"base: [b{level + 1}.yaml, b{level + 1}.yaml]\n")
    Path("b40.yaml").write_text("run: {name: a}\n")
    assert "more than 50 files are read by way of base" in mistakes_of("b0.yaml")


def test_only_regular_files(small: Path, mistakes_of: Mistakes) -> None:
    os.mkfifo("fifo.yaml")
    assert mistakes_of("fifo.yaml") == "fifo.yaml cannot be read: not a regular file"
    assert mistakes_of("/dev/zero") == "/dev/zero cannot be read: not a regular file"
    small.write_text("base: fifo.yaml\n")
    assert mistakes_of(small).startswith("small.yaml:1: base names fifo.yaml, which does not exist")


@pytest.mark.parametrize("text", ["1e9", "1e-3", "0x10", "null", "2024-01-01", "1:30", "<<", "=", "- a", "é", " x "])
def test_what_is_written_is_read_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "written.yaml"
    content = {"name": text, text: 1, "list": [text, 1e9, 1e-5, 3, None, True]}
    path.write_text(write_document(content), encoding="utf-8")
    assert read_document(path).plain() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"zero_optimization": ' + "[" * 900 + "]" * 900 + "}", "not valid JSON: nested too deeply"),
        ("9" * 5_000, "not valid JSON"),
        ('{"zero_optimization": {"reduce_bucket_size": 1' + "0" * 400 + "}}", "reduce_bucket_size must be a whole"),
        ('{"zero_optimization": {"reduce_bucket_size": 1e999}}', "reduce_bucket_size must be a whole"),
        ("{" + ", ".join(f'"a{i}": 1' for i in range(40_000)) + ', "a0": 1}', "'a0' is twice in one object"),
        (" " * (1 << 21), "larger than"),
    ],
    ids=["deep", "less deep", "digits", "huge", "endless", "twice among many", "large"],
)
def test_settings_of_deepspeed(small: Path, mistakes_of: Mistakes, content: str, message: str) -> None:
    from tolktrain.config.deepspeed import read_deepspeed_file, resolve_deepspeed
    from tolktrain.config.load import load_config

    Path("ds.json").write_text(content)
    config = load_config(small, ["deepspeed.config=ds.json"])
    with pytest.raises(UserError) as caught:
        resolve_deepspeed(config, read_deepspeed_file(config), 1)
    assert message in str(caught.value) and len(str(caught.value)) < 1_000
    assert json.dumps(str(caught.value))
