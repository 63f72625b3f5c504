"""The commands that the documentation shows name options, configurations and keys that there are."""

import re
import shlex
from pathlib import Path

import pytest

from tolktrain.cli.entry import VERBS as ALL_VERBS
from tolktrain.cli.entry import _parse
from tolktrain.config.load import load_config, load_prepare_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERBS = (
    *("train", "evaluate", "analyze", "generate", "report", "checkpoints", "export"),
    *("config", "bench", "prepare", "tune"),
)


PREPARE = "prepare:"


def configurations(markdown: str) -> list[list[str]]:
    """Configuration and overrides of every command in a fenced bash block, or in backticks, that names a YAML file.

    Those of the verb prepare, whose configurations are of another kind, begin with `PREPARE`.
    """
    lines = [line for block in re.findall(r"```bash\n(.*?)```", markdown, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", markdown)
    found = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # prose between backticks, not a command
        ours = any(word == "tolktrain" and after in VERBS for word, after in zip(words, words[1:], strict=False))
        prepares = "prepare" in words or any(word.endswith("prepare.sbatch") for word in words)
        if ours or prepares or any(word.endswith("pretrain.sbatch") for word in words):
            places = [i for i, word in enumerate(words) if word.endswith((".yaml", ".yml"))]
            if places:
                arguments = [word for word in words[places[0] :] if not word.startswith("-")]
                found.append([PREPARE, *arguments] if prepares else arguments)
    return found


def command_lines(markdown: str) -> list[list[str]]:
    """The words after `tolktrain` of every command in a fenced bash block."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", markdown, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # a line of a script
            places = [i for i, pair in enumerate(zip(words, words[1:], strict=False)) if _calls(*pair)]
            if places:
                after = words[places[0] + 1 :]
                end = next((i for i, word in enumerate(after) if word in {"|", ">", "&&", "||", "&", ";"}), len(after))
                found.append(after[:end])
    return found


def _calls(word: str, after: str) -> bool:
    return word == "tolktrain" and after in ALL_VERBS


LINES = [
    pytest.param(words, id=f"{file.relative_to(ROOT)}: {' '.join(words)}")
    for file in DOCUMENTS
    for words in command_lines(file.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("words", LINES)
def test_the_documented_command_has_options_that_there_are(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as by the command line. What `plan` and `tune` read is loaded; their options take values without `=`."""
    monkeypatch.chdir(ROOT)
    parsed = _parse(words)
    if parsed.verb in {"plan", "tune"} and str(parsed.config).endswith(".yaml"):
        assert load_config(parsed.config, parsed.overrides).run.name


def test_unknown_options_of_documented_commands_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = command_lines("```bash\npython -m tolktrain plan a.yaml \\\n    --gpu-count 8 > file\n```\n")
    assert words == ["plan", "a.yaml", "--gpu-count", "8"]
    with pytest.raises(SystemExit):
        _parse(words)
    assert "unrecognized arguments: --gpu-count" in capsys.readouterr().err


COMMANDS = [
    pytest.param(command, id=f"{file.relative_to(ROOT)}: {' '.join(command)}")
    for file in DOCUMENTS
    for command in configurations(file.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_documented_command_has_a_sound_configuration(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if command[0] == PREPARE:
        assert load_prepare_config(command[1], command[2:]).name
    else:
        assert load_config(command[0], command[1:]).run.name


def test_commands_are_found_where_they_stand() -> None:
    text = (
        "```bash\ntolktrain config a.yaml   # what is resolved\n"
        "NPROC=2 bash launch/pretrain.sbatch b.yaml x.y='{z: 1}'\n"
        "tolktrain evaluate runs/a\ntolktrain config c.yaml --schema\nls d.yaml\n```\n"
        "and `tolktrain train e.yaml k=v`, don't; `tolktrain prepare f.yaml k=v` and `sbatch prepare.sbatch g.yaml`\n"
    )
    prose = [["e.yaml", "k=v"], [PREPARE, "f.yaml", "k=v"], [PREPARE, "g.yaml"]]
    assert configurations(text) == [["a.yaml"], ["b.yaml", "x.y={z: 1}"], ["c.yaml"], *prose]
    assert COMMANDS
