"""The class of each key: stated with the key, in the schema, and in the table of docs/operations.md."""

import fnmatch
import re
from pathlib import Path

import pytest

from tolktrain.config.base import ChangeClass
from tolktrain.config.changes import class_of, classes_of_keys, differences, value_at, with_defaults
from tolktrain.config.document import parse
from tolktrain.config.load import dump_config, load_config, schema
from tolktrain.config.mistakes import known_keys
from tolktrain.config.root import Config

REPOSITORY = Path(__file__).resolve().parents[2]


def described(found: ChangeClass) -> str:
    return found.kind if found.until is None else f"{found.kind} until the stage {found.until}"


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    section = (REPOSITORY / "docs" / "operations.md").read_text().split("\n## Changing a run\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:free|steering|fixed)[^|]*) \| (`.*) \|$", section, re.MULTILINE)
    table = [(pattern, kind) for kind, patterns in rows for pattern in re.findall(r"`([^`]+)`", patterns)]
    keys = classes_of_keys()
    used = set()
    for key, found in keys.items():
        assert found is not None, f"the definition of {key} states no class"
        matching = [(pattern, kind) for pattern, kind in table if fnmatch.fnmatchcase(key, pattern)]
        assert [kind for _, kind in matching] == [described(found)], (key, matching)
        used |= {pattern for pattern, _ in matching}
    assert used == {pattern for pattern, _ in table}


def test_every_key_that_holds_a_value_has_a_class() -> None:
    groups = {
        "run",
        "model",
        "model.speech",
        "model.lora",
        "data",
        "data.interleaving",
        "data.vocoder",
        "train",
        "train.stages.N.schedule",
        "train.stages.N.preference",
    }
    groups |= {"train.optimizer", "train.guard", "train.validation", "parallel", "deepspeed", "checkpoint", "health"}
    assert set(known_keys(Config)) - set(classes_of_keys()) == groups | {"logging", "kernels", "evaluation"}


def test_the_schema_states_the_classes() -> None:
    definitions = schema()["$defs"]
    for model, key, kind, until in (
        ("RunConfig", "seed", "fixed", None),
        ("StageConfig", "tokens", "steering", "the stage ends"),
        ("StageConfig", "mixture", "steering", "the stage begins"),
        ("OptimizerConfig", "clip_grad_norm", "steering", None),
        ("DatasetConfig", "path", "free", None),
        ("ModelConfig", "backbone", "fixed", None),
    ):
        found = definitions[model]["properties"][key]
        assert (found["change"], found.get("change_until")) == (kind, until) and found["description"]


def test_defaults_complete_a_tree(tmp_path: Path) -> None:
    """A configuration without any key that has its default is completed to the whole one."""
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml")
    whole = config.model_dump(mode="json")
    sparse = config.model_dump(mode="json", exclude_defaults=True)
    assert sparse != whole and differences(with_defaults(sparse), whole) == []
    assert parse(dump_config(config), None).plain() == whole


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (("data", "sets", "a.b", "path"), "free"),
        (("data", "sets", "new"), "free"),
        (("train", "stages", 3, "schedule", "warmup_steps"), "steering"),
        (("train", "stages", 0, "mixture", "text", "sets", "a.b"), "steering"),
        (("logging", "of_another_release"), "free"),
        (("train", "of_another_release"), None),
        (("of_another_release",), None),
    ],
)
def test_class_of_a_key(path: tuple[str | int, ...], kind: str | None) -> None:
    found = class_of(path)
    assert (None if found is None else found.kind) == kind


def test_differences_and_values() -> None:
    old = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": 0.5}
    new = {"a": {"b": 2, "c": [1, {"d": 3}]}, "f": None, "e": 0.5}
    found = [(one.key, one.old, one.new) for one in differences(old, new)]
    assert found == [("a.b", 1, 2), ("a.c", [1, {"d": 2}], [1, {"d": 3}])]
    assert value_at(old, "a.c.1.d") == 2 and value_at(old, "a.c.2") is None and value_at(old, "a.x.y") is None
