"""What the configuration of a preparation refuses."""

from pathlib import Path

import pytest

from tolktrain.config.load import load_prepare_config, schema
from tolktrain.config.prepare import PrepareConfig
from tolktrain.errors import UserError

RECORDINGS = "recordings: {manifest: m.jsonl, speech_tokenizer: {path: units}}"


def load(tmp_path: Path, text: str, *overrides: str) -> PrepareConfig:
    file = tmp_path / "prepare.yaml"
    file.write_text(f"name: n\noutput: out\n{text}\n")
    return load_prepare_config(file, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"give one of recordings, text, published and dialogue; found none of them"),
        (f"{RECORDINGS}\ntext: {{files: [a.jsonl]}}", r"found recordings, text"),
        ("text: {files: [a.jsonl]}", r"text needs text_tokenizer"),
        ("text: {files: []}\ntext_tokenizer: t", r"prepare.yaml:3: text.files"),
        ("recordings: {manifest: m.jsonl}", r"recordings.speech_tokenizer is missing"),
        (f"{RECORDINGS}\npassages: {{token: 5}}", r"passages.token is not a known key; did you mean"),
        (
            RECORDINGS.replace("units}", "units}, alignment: {method: ctc}"),
            r"alignment.*method ctc needs a model; set model",
        ),
        (
            f"{RECORDINGS}\nshards: {{compression: zstd:99}}",
            r"give zstd:1 to zstd:22, gz:1 to gz:9",
        ),
        (f"{RECORDINGS}\nshards: {{megabytes: 5000}}", r"shards.megabytes: expected a whole number.*below 2048"),
        (f"{RECORDINGS}\nheldout: {{sources: 1.0}}", r"heldout.sources: expected a number.*below 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_paths_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").touch()
    config = load(tmp_path, f"{RECORDINGS}\ntext_tokenizer: HuggingFaceTB/SmolLM-135M", "parts.items=7")
    assert config.recordings is not None and config.recordings.manifest == str(tmp_path / "m.jsonl")
    assert config.text_tokenizer == "HuggingFaceTB/SmolLM-135M" and config.output == "out" and config.parts.items == 7


def test_the_schema_knows_every_key() -> None:
    assert set(schema(PrepareConfig)["properties"]) == {"base", *PrepareConfig.model_fields}
