"""Files, bases, overrides and paths."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tolktrain.config.load import dump_config, load_config, schema

Mistakes = Callable[..., str]


def test_values_defaults_and_tuples(small: Path) -> None:
    config = load_config(small)
    assert config.run.name == "small"
    assert config.train.stages[1].mixture["interleaved"].weight == 2.0
    assert config.train.stages[0].learning_rate == 1e-3
    assert config.data.interleaving.text_words == (10, 30)


def test_dump_reads_back_as_the_same_configuration(small: Path, tmp_path: Path) -> None:
    config = load_config(small, ["train.optimizer.eps=1e-12", "run.name=umlaut", "train.max_steps=7"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config
    assert yaml.safe_load(dump_config(config))["train"]["max_steps"] == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2e-3", 2e-3), ("1E-3", 1e-3), ("1.5e-4", 1.5e-4), ("1", 1.0), ("+1e-1", 0.1), (".5", 0.5)],
)
def test_spellings_of_numbers(small: Path, text: str, expected: float) -> None:
    assert load_config(small, [f"train.stages.0.learning_rate={text}"]).train.stages[0].learning_rate == expected


@pytest.mark.parametrize(("text", "expected"), [("1e9", 10**9), ("1_000_000", 10**6), ("1.5e6", 1_500_000)])
def test_spellings_of_whole_numbers(small: Path, text: str, expected: int) -> None:
    assert load_config(small, [f"train.stages.0.tokens={text}"]).train.stages[0].tokens == expected


def test_overrides_win_in_order_and_make_branches(small: Path) -> None:
    config = load_config(
        small,
        [
            "train.max_steps=3",
            "train.max_steps=5",
            "model.speech.layer_pooling=static",
            "train.stages.1.mixture.speech.weight=0.5",
            "data.sets.third={path: /somewhere}",
            "evaluation.heldout_sets=[heldout, third]",
        ],
    )
    assert config.train.max_steps == 5
    assert config.model.speech.layer_pooling == "static"
    assert config.train.stages[1].mixture["speech"].weight == 0.5
    assert config.data.sets["third"].path == "/somewhere"
    assert config.evaluation.heldout_sets == ("heldout", "third")


def test_files_may_define_sets_that_nothing_uses(small: Path) -> None:
    small.write_text(small.read_text().replace("    heldout:", "    spare: {path: spare}\n    heldout:"))
    assert load_config(small, ["data.sets.spare.path=/other"]).data.sets["spare"].path == "/other"


def test_bases_merge_mappings_and_replace_the_rest(small: Path) -> None:
    Path("sub").mkdir()
    Path("sub/middle.yaml").write_text("base: ../small.yaml\nrun: {seed: 3}\ntrain: {global_batch_size: 16}\n")
    Path("extra.yaml").write_text("run: {seed: 4, name: extra}\nmodel: {backbone: org/hub-model}\n")
    Path("top.yaml").write_text(
        "base: [sub/middle.yaml, extra.yaml]\n"
        "run: {name: top}\n"
        "train:\n  stages: {1: {tokens: 99, mixture: {speech: {weight: 3}}}}\n"
    )
    config = load_config("top.yaml")
    assert (config.run.name, config.run.seed) == ("top", 4)
    assert config.train.global_batch_size == 16
    assert config.model.backbone == "org/hub-model"
    assert [stage.tokens for stage in config.train.stages] == [4096, 99]
    assert set(config.train.stages[1].mixture) == {"speech", "interleaved"}
    assert config.train.stages[1].mixture["speech"].weight == 3


def test_a_mistake_in_a_base_is_placed_there(small: Path, mistakes_of: Mistakes) -> None:
    Path("top.yaml").write_text("base: small.yaml\nrun: {seed: 1}\n")
    small.write_text(small.read_text().replace("sequence_length: 64", "sequence_length: long"))
    message = mistakes_of("top.yaml")
    assert message == "small.yaml:18: train.sequence_length: expected a whole number greater than 1, got 'long'"


def test_bases_that_lead_back_or_nowhere(small: Path, mistakes_of: Mistakes) -> None:
    Path("a.yaml").write_text("base: b.yaml\n")
    Path("b.yaml").write_text("run: {name: b}\nbase: a.yaml\n")
    assert mistakes_of("a.yaml") == "b.yaml:2: base leads back to a.yaml: a.yaml -> b.yaml -> a.yaml"
    Path("a.yaml").write_text("run: {name: a}\nbase: configs/none.yaml\n")
    assert mistakes_of("a.yaml").startswith("a.yaml:2: base names configs/none.yaml, which does not exist")
    Path("a.yaml").write_text("base: {x: 1}\n")
    assert mistakes_of("a.yaml").startswith("a.yaml:1: base: expected the name of a YAML file")


def test_unreadable_files(small: Path, mistakes_of: Mistakes) -> None:
    assert mistakes_of("none.yaml").startswith("none.yaml does not exist; name a YAML file such as")
    assert mistakes_of(".").startswith(". is a folder")
    Path("broken.yaml").write_text("run:\n  name: [x\ntrain: 3\n")
    assert mistakes_of("broken.yaml").startswith("broken.yaml:3: not valid YAML: ")
    Path("tab.yaml").write_text("run:\n\tname: x\n")
    assert mistakes_of("tab.yaml").endswith("; indent with spaces, not tabs")
    Path("latin.yaml").write_bytes(b"run: {name: caf\xe9}\n")
    assert mistakes_of("latin.yaml").startswith("latin.yaml is not UTF-8 text (byte 15)")
    Path("empty.yaml").write_text("# nothing\n")
    assert mistakes_of("empty.yaml") == "empty.yaml: expected a mapping such as 'run: {name: ...}', found nothing"
    Path("list.yaml").write_text("- a\n")
    assert "expected a mapping" in mistakes_of("list.yaml")
    Path("two.yaml").write_text("run: {name: a}\n---\nrun: {name: b}\n")
    assert mistakes_of("two.yaml").startswith("two.yaml:2: not valid YAML: ")


def test_a_file_without_read_permission(small: Path, mistakes_of: Mistakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(
        "tolktrain.config.document.read_text", refuse
    )  # the tests may run as root, whom no file mode stops
    assert mistakes_of(small) == "small.yaml cannot be read: Permission denied"


def test_keys_given_twice_and_other_oddities(small: Path, mistakes_of: Mistakes) -> None:
    small.write_text(small.read_text() + "run: {seed: 1}\n")
    assert mistakes_of(small) == "small.yaml:31: run is given twice (first in line 1); keep one"
    Path("alias.yaml").write_text("run: &run\n  name: *run\n")
    assert mistakes_of("alias.yaml") == "alias.yaml:2: this alias contains itself"
    Path("merge.yaml").write_text("run: &run {name: a}\nmodel: {<<: *run}\n")
    assert mistakes_of("merge.yaml") == (
        "merge.yaml:2: '<<' is not supported; use 'base: other.yaml' to build on another file"
    )
    Path("date.yaml").write_text("run:\n  name: 2024-99-99\n")
    assert mistakes_of("date.yaml").startswith("date.yaml:2: '2024-99-99' cannot be read")
    Path("object.yaml").write_text("run: !!python/object/apply:os.getcwd []\n")
    assert mistakes_of("object.yaml").startswith("object.yaml:")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps", "'train.max_steps' is not of the form key=value, such as train.max_steps=10"),
        ("=3", "'=3' is not of the form key=value"),
        ("train..x=3", "'train..x=3' is not of the form key=value"),
        ("run.name=", "'run.name=' has no value; write run.name=null to unset it"),
        ("train.stages.2.tokens=3", "'train.stages.2.tokens=3': '2' is no item of a list; use a number from 0 to 1"),
        ("train.stages.text.tokens=3", "'text' is no item of a list"),
        ("run.name.first=3", "there is no 'first' to set, because the value is 'small', not a mapping"),
        ("run.name=[a", "'[a' is not valid YAML: expected"),
    ],
)
def test_overrides_that_cannot_be_applied(small: Path, mistakes_of: Mistakes, override: str, message: str) -> None:
    got = mistakes_of(small, override)
    assert got.startswith("on the command line")
    assert message in got


def test_paths_are_searched_in_the_working_folder_then_above_the_file(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / ".git", project / "configs", project / "stories", tmp_path / "heldout", elsewhere):
        folder.mkdir(parents=True)
    file = project / "configs" / "small.yaml"
    file.write_text(small.read_text())
    monkeypatch.chdir(elsewhere)
    paths = {name: item.path for name, item in load_config(file).data.sets.items()}
    # stories is in the repository's root; heldout only above it, where nobody looks: from the working folder
    assert paths == {"stories": str(project / "stories"), "heldout": str(elsewhere / "heldout")}
    (project / "configs" / "stories").mkdir()
    assert load_config(file).data.sets["stories"].path == str(project / "configs" / "stories")
    (elsewhere / "stories").mkdir()
    assert load_config(file).data.sets["stories"].path == str(elsewhere / "stories")


def test_a_backbone_may_be_a_folder_or_a_hub_id(small: Path, tmp_path: Path) -> None:
    def backbone(value: str) -> object:
        return load_config(small, [f"model.backbone={value}"]).model.backbone

    assert backbone("org/model") == "org/model"
    assert backbone("./model") == str(tmp_path / "model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert backbone("org/model") == str(tmp_path / "org" / "model")


def test_the_home_folder_is_expanded(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_config(small, ["data.text_tokenizer=~/tokenizer"]).data.text_tokenizer == str(
        tmp_path / "home" / "tokenizer"
    )


def test_output_stays_relative(small: Path) -> None:
    assert load_config(small).run.dir == "runs"


def test_schema_documents_every_field() -> None:
    text = json.dumps(schema())
    assert "base" in schema()["properties"]
    definitions = {"Config": schema(), **schema()["$defs"]}
    undocumented = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, field in definition.get("properties", {}).items()
        if not field.get("description")
    ]
    assert undocumented == []
    assert "InputPath" not in text


def test_configurations_never_change(small: Path) -> None:
    config = load_config(small)
    with pytest.raises(ValueError, match="frozen"):
        config.run.name = "other"
