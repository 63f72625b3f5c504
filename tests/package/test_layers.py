"""Imports point downwards and form no circles, as docs/architecture.md says."""

from pathlib import Path

import pytest
from check_layers import FORBIDDEN, LAYERS, PACKAGE, ROOT, Sources, cycle, main, problems


def sources(folder: Path, **files: str) -> Sources:
    """A package `ours` with these modules."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Sources.read(folder, "ours")


TWO = {"high": ("top",), "low": ("base", "base.inner", "other")}


def test_the_package_keeps_to_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0, capsys.readouterr().out


def test_every_part_that_is_named_exists() -> None:
    """A rule about a package that has been renamed would hold for nothing."""
    modules = Sources.read(ROOT / PACKAGE, PACKAGE).imports
    parts = {part for names in LAYERS.values() for part in names}
    assert {part for part in parts if f"{PACKAGE}.{part}" not in modules} == set()
    assert {part for pair in FORBIDDEN for part in pair} <= parts


def test_downwards_and_sideways_is_allowed(tmp_path: Path) -> None:
    given = sources(tmp_path, top="import ours.base\nfrom ours.other import x", base="from ours import other", other="")
    assert given.imports["ours.top"] == {"ours.base", "ours.other"} and given.imports["ours.base"] == {"ours.other"}
    assert problems(given, TWO, {}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from ours.top import x",
        "from ours import top",
        "import ours.top as t",
        "def f():\n    import ours.top",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.top import x",
    ],
)
def test_upwards_is_not(tmp_path: Path, text: str) -> None:
    given = sources(tmp_path, **{"top": "", "base/part": text})
    assert problems(given, TWO, {}) == ["ours.base.part (low) imports ours.top (high): imports point downwards"]


def test_a_sub_package_can_be_a_part_of_its_own(tmp_path: Path) -> None:
    files = {"base/inner/a": "import ours.other", "other": "import ours.base.b", "base/b": ""}
    assert problems(sources(tmp_path, **files), TWO, {}) == []
    (found,) = problems(sources(tmp_path, **files), {"low": ("base", "other")}, {})
    assert found == "parts import each other: base -> other -> base"


def test_what_is_forbidden_has_a_reason(tmp_path: Path) -> None:
    given = sources(tmp_path, base="import ours.other", other="")
    assert problems(given, TWO, {("base", "other"): "strangers"}) == ["ours.base imports ours.other: strangers"]


def test_a_part_without_a_layer(tmp_path: Path) -> None:
    assert problems(sources(tmp_path, **{"new/a": ""}), TWO, {}) == ["ours.new.a: new has no layer; name it in LAYERS"]


def test_a_circle_of_type_only_imports(tmp_path: Path) -> None:
    only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.base.{} import X"
    files = {"base/a": "import ours.base.b", "base/b": only.format("c"), "base/c": only.format("a")}
    circle = "ours.base.a -> ours.base.b -> ours.base.c -> ours.base.a"
    assert problems(sources(tmp_path, **files), TWO, {}) == [f"modules import each other: {circle}"]


def test_a_circle_through_an_init(tmp_path: Path) -> None:
    given = sources(tmp_path, **{"base/__init__": "from ours.base.a import x", "base/a": "from ours.base import y"})
    assert problems(given, TWO, {}) == ["modules import each other: ours.base -> ours.base.a -> ours.base"]


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.py:1 imports relatively; write the whole name"):
        sources(tmp_path, a="from . import b")


def test_a_long_chain_is_no_circle() -> None:
    chain = {str(n): frozenset({str(n + 1)}) for n in range(5000)} | {"5000": frozenset()}
    assert cycle(chain) == []
    assert cycle({**chain, "5000": frozenset({"4998"})}) == ["4998", "4999", "5000", "4998"]
