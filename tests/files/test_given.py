"""Paths as users give them."""

import argparse
import importlib
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tolktrain.config.load import load_config, load_prepare_config
from tolktrain.config.mistakes import known_keys
from tolktrain.config.prepare import PrepareConfig
from tolktrain.config.root import Config
from tolktrain.errors import UserError
from tolktrain.files.given import given_path, path_argument

SMALL = Path(__file__).parents[1] / "config" / "conftest.py"  # its `SMALL` is the text of a configuration
PREPARE = {
    "recordings": "recordings: {manifest: m, speech_tokenizer: {path: units}}",
    "text": "text: {files: [a.jsonl]}\ntext_tokenizer: tok",
    "published": "published: {folder: f, speech_tokenizer: units}",
    "dialogue": "dialogue: {files: [a.jsonl], strategies: [answer_text], sequence_length: 64}\ntext_tokenizer: tok",
}
# Keys that hold a path or address; a new one of a name like these must be added.
OUTPUTS = ("run.dir", "checkpoint.upload")
INPUTS = (
    *("data.sets.stories.path", "data.sets.stories.remote", "data.text_tokenizer", "data.speech_tokenizer"),
    *("data.vocoder.path", "deepspeed.config", "evaluation.prompts", "model.backbone"),
)
LISTS = ("text.files", "dialogue.files")
PREPARE_INPUTS = {
    "recordings": (
        *("recordings.manifest", "recordings.audio_root", "recordings.speech_tokenizer.path"),
        *("recordings.alignment.model", "text_tokenizer"),
    ),
    "text": ("text.files",),
    "published": ("published.folder", "published.text_folder", "published.speech_tokenizer"),
    "dialogue": (
        *("dialogue.files", "dialogue.audio_root", "dialogue.speech_tokenizer"),
        "dialogue.alignment.model",
    ),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working folder is another one, and SCRATCH is set."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    return folder


def value_at(config: object, key: str) -> object:
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def load(key: str, value: str, how: str) -> object:
    """The value that a configuration has at a key after it was given in a file or as an override."""
    kinds = [name for name, keys in PREPARE_INPUTS.items() if key in keys]
    is_prepare = bool(kinds) or key == "output"
    text = f"name: n\noutput: out\n{PREPARE[kinds[0] if kinds else 'recordings']}\n" if is_prepare else small_text()
    Path("below.yaml").write_text(text)
    shown = f"['{value}']" if key in LISTS else f"'{value}'"
    overrides = [f"{key}={shown}"] if how == "override" else []
    if key.endswith("alignment.model"):
        overrides.append(f"{key.removesuffix('model')}method=ctc")
    Path("above.yaml").write_text(f"base: below.yaml\n{nested(key, shown) if how == 'file' else ''}\n")
    config = (load_prepare_config if is_prepare else load_config)("above.yaml", overrides)
    found = value_at(config, key)
    return found[0] if isinstance(found, tuple) else found


def nested(key: str, shown: str) -> str:
    """YAML of one dotted key."""
    first, _, rest = key.partition(".")
    return f"{first}: {{{nested(rest, shown)}}}" if rest else f"{first}: {shown}"


def small_text() -> str:
    """A small configuration."""
    return SMALL.read_text().split('SMALL = """\\\n')[1].split('"""')[0]


ALL = [*OUTPUTS, "output", *INPUTS, *(key for keys in PREPARE_INPUTS.values() for key in keys)]


@pytest.mark.parametrize("how", ["file", "override"])
@pytest.mark.parametrize("key", ALL)
def test_the_home_folder_and_variables_at_every_key(home: Path, key: str, how: str) -> None:
    assert load(key, "~/some/place", how) == f"{home}/some/place"
    for variable in ("$SCRATCH", "${SCRATCH}", "$NOWHERE", "$(pwd)"):
        with pytest.raises(UserError, match="environment variables are expanded by the shell only") as caught:
            load(key, f"{variable}/x", how)
        place = "on the command line" if how == "override" else "above.yaml:2"
        where = f"{key}.0" if key in LISTS else key
        assert str(caught.value).startswith(f"{place}: {where}: '{variable}/x' contains {variable}, ")
        assert ("such as '/scratch/me/x'" in str(caught.value)) == ("SCRATCH" in variable)
    with pytest.raises(UserError, match=r"no such user; write the whole path, or '\./~no-such-user/x'"):
        load(key, "~no-such-user/x", how)
    assert os.listdir(home.parent / "work") and not (home.parent / "work" / "~").exists()


@pytest.mark.parametrize(
    "key", [key for key in ALL if key not in ("checkpoint.upload", "output", "data.sets.stories.remote")]
)
def test_addresses_where_only_local_paths_can_be_used(home: Path, key: str) -> None:
    with pytest.raises(UserError, match="'s3://bucket/x' is an address, but only local paths can be used here"):
        load(key, "s3://bucket/x", "file")


def test_no_key_that_holds_a_path_is_left_out() -> None:
    words = (
        "path",
        "dir",
        "folder",
        "file",
        "files",
        "output",
        "upload",
        "remote",
        "manifest",
        "prompts",
        "audio_root",
    )
    words = (*words, "text_folder", "text_tokenizer", "speech_tokenizer", "backbone", "model")
    named = {key.replace("NAME", "stories") for root in (Config, PrepareConfig) for key in known_keys(root)}
    found = {key for key in named if key.rpartition(".")[2] in words}
    assert found - {"model", "recordings.speech_tokenizer"} <= set(ALL)


def test_inputs_whose_names_hold_a_dollar_or_a_tilde(home: Path) -> None:
    """They exist, so nothing else is meant; an output is refused, because it would be made."""
    for name in ("$SCRATCH", "~no-such-user", "${x}"):
        Path(name).mkdir()
        assert given_path(f"{name}/a", is_input=True) == f"{name}/a"
        assert load("data.sets.stories.path", name, "file") == str(Path(name).absolute())
        with pytest.raises(UserError):
            given_path(f"{name}/a")
    assert load("text.files", "$SCRATCH/*.jsonl", "file") == "$SCRATCH/*.jsonl"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["prepare", "--inspect", "set", "--output", "$SCRATCH/x"], "--output"),
        (["prepare", "--inspect", "$SCRATCH/x"], "--inspect"),
        (["prepare", "--inspect", "set", "--text-tokenizer", "$SCRATCH/x"], "--text-tokenizer"),
        (["prepare", "--inspect", "set", "--speech-tokenizer", "$SCRATCH/x"], "--speech-tokenizer"),
        *((["generate", "run", option, "$SCRATCH/x"], option) for option in ("--audio", "--prompts", "--into")),
        (["export", "run", "$SCRATCH/x"], "INTO"),
        *((["plan", "a.yaml", option, "$SCRATCH/x"], option) for option in ("--calibration", "--json", "--picture")),
        (["bench", "a.yaml", "--output", "$SCRATCH/x"], "--output"),
        *(
            ([verb, "$SCRATCH/x"], "CONFIG")
            for verb in ("train", "evaluate", "generate", "report", "config", "prepare")
        ),
        (["checkpoints", "$SCRATCH/x"], "RUN"),
        (["export", "$SCRATCH/x", "new"], "RUN"),
    ],
)
def test_options_of_the_command_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    from tolktrain.cli.entry import main

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    expected = f"argument {option}: '$SCRATCH/x' contains $SCRATCH, and environment variables are expanded by the shell"
    assert expected in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.parametrize("program", ["ablations", "first_hour"])
def test_options_of_the_programs_of_launch(home: Path, capsys: pytest.CaptureFixture[str], program: str) -> None:
    module = importlib.import_module(f"tolktrain.benchmark.{program}.__main__")
    with pytest.raises(SystemExit) as caught:
        module.main(["--out", "$SCRATCH/x"])
    assert caught.value.code == 2 and "--out: '$SCRATCH/x' contains $SCRATCH" in capsys.readouterr().err
    assert os.listdir() == []


def test_an_option_in_the_home_folder(home: Path) -> None:
    """`--output=~/x` reaches the program as it is: the shell expands only a tilde at the beginning of a word."""
    assert path_argument("~/x") == home / "x"
    with pytest.raises(argparse.ArgumentTypeError, match="no such user"):
        path_argument("~no-such-user/x")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@example("a$b")
@example("$")
@example("100%$/x")
@example("~/$HOME")
@example("s3:/x")
def test_an_output_is_used_as_it_is_or_refused(text: str) -> None:
    """Independent of how it is implemented: nothing but a tilde at the beginning is ever changed."""
    try:
        found = given_path(text)
    except UserError as error:
        assert "$" in text or text.startswith("~") or ":/" in text, error
        return
    if text == "~" or text.startswith("~/"):
        assert found == os.environ["HOME"].rstrip("/") + text[1:] or found == os.path.expanduser(text)
    elif not text.startswith("~"):
        assert found == text
