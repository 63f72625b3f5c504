"""Numbers, names and absent values that YAML reads otherwise than people write them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tolktrain.config.document import parse, read_document, write_document
from tolktrain.config.load import load_config
from tolktrain.errors import UserError

Mistakes = Callable[..., str]
MAYBE = "a whole number greater than 0 or null"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("010", "010 begins with 0, so YAML reads it as the octal number 8; write 10, or put it in quotes"),
        ("-0_17", "-0_17 begins with 0, so YAML reads it as the octal number -15; write -17, "),
        ("10:00", "YAML reads 10:00 in base 60, as the number 600; write a number, or put it in quotes"),
        ("1:2", "YAML reads 1:2 in base 60, as the number 62;"),
        ("190:20:30.15", "YAML reads 190:20:30.15 in base 60, as the number 685230.15;"),
    ],
)
def test_numbers_that_are_others_to_yaml(small: Path, mistakes_of: Mistakes, written: str, message: str) -> None:
    """Whatever the key expects, also as a name, in a list, and in a file."""
    for override in (f"run.seed={written}", f"run.name={written}", f"evaluation.heldout_sets=[{written}]"):
        assert mistakes_of(small, override).startswith(f"on the command line: {message}")
    assert f"\"'{written}'\"" in mistakes_of(small, f"data.sets={{{written}: {{path: x}}}}")
    small.write_text(small.read_text().replace("sequence_length: 64", f"sequence_length: {written}"))
    assert mistakes_of(small).startswith(f"small.yaml:18: {message}")
    small.write_text(small.read_text().replace(f"sequence_length: {written}", "sequence_length: 64"))
    assert load_config(small, [f"data.cache_limit='{written}'"]).data.cache_limit == written


@pytest.mark.parametrize(
    ("written", "value"),
    [("0", 0), ("00", 0), ("1_000", 1000), ("1e6", 10**6), ("1.0e6", 10**6), ("0x10", 16), ("+10", 10), ("1E+3", 1000)],
)
def test_whole_numbers_that_mean_what_they_say(small: Path, written: str, value: int) -> None:
    assert load_config(small, [f"run.seed={written}"]).run.seed == value


@pytest.mark.parametrize(("written", "value"), [(".5e-2", 0.005), ("+.5", 0.5), ("007.5e-3", 0.0075), ("1.e-2", 0.01)])
def test_fractions_that_mean_what_they_say(small: Path, written: str, value: float) -> None:
    rate = load_config(small, [f"train.stages.0.learning_rate={written}"]).train.stages[0].learning_rate
    assert rate == pytest.approx(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps=08", f"expected {MAYBE}, got '08'; write 8"),
        ("train.max_steps='08'", f"expected {MAYBE}, got '08'; write 8 without quotes"),
        ("train.max_steps=0o10", f"expected {MAYBE}, got '0o10'; write 8"),
        ("train.max_steps=1,000", f"expected {MAYBE}, got '1,000'; write 1000"),
        ("train.max_steps='2.0'", f"expected {MAYBE}, got '2.0'; write 2 without quotes"),
        ("train.max_steps='2.5'", f"expected {MAYBE}, got '2.5'"),
        ("train.max_steps=٣", f"expected {MAYBE}, got '٣'"),
        ("train.max_steps=inf", f"expected {MAYBE}, got 'inf'"),
        ("train.max_steps=None", f"expected {MAYBE}, got 'None'; write null"),
        ("train.max_steps='None'", f"expected {MAYBE}, got 'None'; write null without quotes"),
        ("run.seed=~", "expected a whole number at least 0, got null (written ~)"),
        ("train.stages.0.learning_rate=1e400", "expected a number greater than 0, got inf (written 1e400)"),
        ("train.stages.0.learning_rate=yes", "expected a number greater than 0, got true (written yes)"),
        ("run.restart=y", "expected true or false, got 'y'; write true"),
        ("run.restart=0", "expected true or false, got 0; write false"),
        ("run.restart='no'", "expected true or false, got 'no'; write false without quotes"),
        ("run.name=960", "expected text, got 960; put it in quotes that the shell keeps: \"'960'\""),
        ("run.name=0x10", "expected text, got 16; put it in quotes that the shell keeps: \"'0x10'\""),
        ("run.name=no", "expected text, got false (written no); put it in quotes that the shell keeps: \"'no'\""),
        ("run.name=2024-01-01", "got 2024-01-01 (date); put it in quotes that the shell keeps: \"'2024-01-01'\""),
        ("evaluation.heldout_sets=stories,heldout", '; write "[stories, heldout]", in quotes for the shell'),
        ("evaluation.heldout_sets=stories", '; write "[stories]", in quotes for the shell'),
        ("evaluation.heldout_sets=(stories heldout)", '; write "[stories, heldout]", in quotes for the shell'),
        ("evaluation.heldout_sets=960", "; write \"['960']\", in quotes for the shell"),
        ("train.optimizer.betas=0.9,0.95", '; write "[0.9, 0.95]", in quotes for the shell'),
        ("train.stages.0.mixture.text.sets=[stories, 960]", ""),
        ("train.stages.0.mixture.text.sets=[stories]", '; write "{stories: 1}", in quotes for the shell'),
        ("train.stages.0.mixture.text.sets='{stories: 2}'", '; write "{stories: 2}", in quotes for the shell'),
        ("train.stages.0.mixture.text.sets={stories:2}", "; a blank is missing after the colon; write stories: 2"),
        ("train.stages.0.mixture.text.sets=stories,no", "; write \"{stories: 1, 'no': 1}\", in quotes for the shell"),
        ("evaluation.heldout_sets=[no]", "got false (written no); put it in quotes that the shell keeps: \"'no'\""),
        (
            "train.stages.0.mixture.text.sets={960: 1}",
            "YAML reads 960 as a number, not as a name; put it in quotes that the shell keeps: \"'960'\"",
        ),
    ],
)
def test_the_message_holds_the_correction(small: Path, mistakes_of: Mistakes, override: str, message: str) -> None:
    assert mistakes_of(small, override).endswith(message)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("no", "false"), ("On", "true"), ("2024-01-01", "a date"), ("1.5", "a number"), ("~", "null"), ("960", None)],
)
def test_names_of_data_sets_in_a_file(small: Path, mistakes_of: Mistakes, name: str, meaning: str | None) -> None:
    text = small.read_text()
    small.write_text(text.replace("    heldout:", f"    {name}:"))
    problem = f"data.sets.{name}: YAML reads {name} as a number" if meaning is None else f"the key {name} as {meaning}"
    message = mistakes_of(small)
    assert problem in message and message.startswith("small.yaml:")
    assert message.endswith(f", not as a name; put it in quotes: '{name}'")
    small.write_text(text.replace("    heldout:", f"    '{name}':"))
    config = load_config(small, [f"evaluation.heldout_sets=['{name}']"])
    assert config.evaluation.heldout_sets == (name,) and name in config.data.sets
    if "." not in name:
        assert load_config(small, [f"data.sets.{name}.path=/x"]).data.sets[name].path == "/x"


@pytest.mark.parametrize("name", ["None", "none", "nil"])
@pytest.mark.parametrize("key", ["checkpoint.upload", "data.cache_limit", "data.text_tokenizer", "train.last_stage"])
def test_names_of_null_where_text_is_allowed(small: Path, mistakes_of: Mistakes, key: str, name: str) -> None:
    message = mistakes_of(small, f"{key}={name}")
    assert message.startswith(
        f"on the command line: {key}: YAML reads {name} as text, not as an absent value; write null"
    )
    assert load_config(small, [f"{key}=null"]) == load_config(small)


def test_a_choice_may_be_none(small: Path) -> None:
    assert load_config(small, ["train.compile=none"]).train.compile == "none"
    assert load_config(small, ["data.cache_limit='None'"]).data.cache_limit == "None"


PLAIN = st.text("0123456789_+-.:eEoxbnNulif", min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN)
@example("08")
@example("None")
@example(".inf")
def test_messages_never_advise_to_remove_quotes_that_are_not_there(small: Path, text: str) -> None:
    for key in ("train.max_steps", "train.stages.0.learning_rate", "run.restart", "run.name", "data.cache_limit"):
        try:
            load_config(small, [f"{key}={text}"])
        except UserError as error:
            assert "without quotes" not in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN)
def test_a_number_is_read_as_python_reads_it_or_refused(text: str) -> None:
    """Python refuses leading zeros and has no base 60; it writes octal numbers as 0o10, which are text here."""
    try:
        value = parse(text, None).value
    except UserError:
        return
    if isinstance(value, int) and not isinstance(value, bool) and not re.search("[_.eE]", text):
        assert value == int(text, 0)
    elif isinstance(value, float) and "_" not in text and not text.lower().endswith(("inf", "nan")):
        assert value == float(text)


@given(st.one_of(PLAIN, st.sampled_from(["None", "none", "nil", "no", "2024-01-01", ".5e3", "=", "~", "a\u0085b"])))
def test_text_is_written_so_that_it_is_read_back(text: str) -> None:
    written = write_document({"a": text, text: 1})
    assert parse(written, Path("a.yaml")).plain() == {"a": text, text: 1} or text == "a"
    assert parse(written, Path("a.yaml")).children["a"].written in ("", text)


def test_a_written_none_is_not_taken_for_null(small: Path, tmp_path: Path) -> None:
    from tolktrain.config.load import dump_config

    config = load_config(small, ["data.cache_limit='none'"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config
    assert read_document(tmp_path / "dumped.yaml").children["data"].children["cache_limit"].value == "none"
