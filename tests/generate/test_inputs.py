"""Prompts and tokenizers are looked for before a run begins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.generate.inputs import check_inputs


def _config(repository: Path, *overrides: str) -> Config:
    return load_config(repository / "configs" / "quickstart.yaml", overrides)


def test_what_is_there_or_not_asked_for_passes(repository: Path) -> None:
    check_inputs(_config(repository))
    check_inputs(_config(repository, "data.text_tokenizer=null"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.prompts=/nowhere", r"/nowhere/prompts\.json cannot be read; evaluation\.prompts must name"),
        (
            "data.speech_tokenizer=/nowhere",
            r"/nowhere/speech_tokenizer\.json does not exist; data\.speech_tokenizer must name a folder with",
        ),
        (
            "data.text_tokenizer=/nowhere",
            r"/nowhere/tokenizer\.json does not exist; data\.text_tokenizer must name a folder with",
        ),
    ],
)
def test_what_is_missing_is_named(repository: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_inputs(_config(repository, override))


def test_a_listed_prompt_that_is_missing(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps([{"file": "gone.wav"}]))
    with pytest.raises(UserError, match=r"gone\.wav does not exist, but .*prompts\.json lists it"):
        check_inputs(_config(repository, f"evaluation.prompts={tmp_path}"))


def test_the_check_imports_nothing_heavy() -> None:
    code = "import sys, tolktrain.generate.inputs; print([n for n in ('numpy', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
