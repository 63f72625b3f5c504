"""Whatever name is in a file of a stranger: nothing outside of the folder is read, made, changed or removed."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # for `readers_of_names`

from readers_of_names import READERS, Name, Reader

from tolktrain.errors import UserError

ELSEWHERE = [
    "{victim}/secret",
    *("../" * depth + "victim/secret" for depth in range(1, 6)),
    "sub/../../../victim/secret",
    *("", ".", "..", "a\0b", "\0", "a\x1b[2J", "x" * 300, "x/" * 3000 + "x", "..\\victim\\secret", "\ud800"),
]
LINKS = ["up/victim/secret", "away/secret", "leak", "circle", "up/victim/new", "dangling"]
NO_NAMES = [None, 7, -1, 1.5, True, [], ["{victim}/secret"], {}, {"basename": "{victim}/secret"}]
PARTS = ["..", ".", "", "sub", "up", "away", "leak", "victim", "secret", "{victim}", "shard.00000.mds", "\0", "~"]
Place = Callable[[Reader], Path]


def _victim(name: Name, root: Path) -> Name:
    return name.replace("{victim}", str(root / "victim")) if isinstance(name, str) else name


def _link(folder: Path, root: Path) -> None:
    """Put links that lead out into a folder and the folders in it."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
        (place / "up").symlink_to(root)
        (place / "away").symlink_to(root / "victim")
        (place / "leak").symlink_to(root / "victim" / "secret")
        (place / "dangling").symlink_to(root / "victim" / "new")
        (place / "circle").symlink_to(place / "circle")


def _tree(root: Path, besides: Path) -> dict[str, tuple[object, ...]]:
    """All that is in a folder, besides what is in another: kinds, times and contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(path, name) != besides]
        for name in (*folders, *files):
            whole = Path(path, name)
            status = whole.lstat()
            content = whole.read_bytes() if whole.is_file() and not whole.is_symlink() else b""
            found[str(whole)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what must not be touched; relative paths begin there."""
    root = tmp_path_factory.mktemp("root").resolve()
    (root / "victim").mkdir()
    (root / "victim" / "secret").write_bytes(b"PRIVATE KEY")
    before = os.getcwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Gives a new folder with what a reader reads, and with links that lead out."""
    templates: dict[int, Path] = {}

    def make(reader: Reader) -> Path:
        if id(reader) not in templates:
            template = templates[id(reader)] = tmp_path_factory.mktemp("template")
            reader.write(template)
            (template / "links").mkdir()
            (template / "work").mkdir(exist_ok=True)
            _link(template, root)
        shutil.rmtree(root / "place", ignore_errors=True)
        shutil.copytree(templates[id(reader)], root / "place", symlinks=True)
        return root / "place"

    return make


def _try(reader: Reader, folder: Path, root: Path, name: Name) -> str | None:
    """The error that a name leads to, None if none; asserts that nothing else has come of it."""
    reader.plant(folder, _victim(name, root))
    before = _tree(root, folder)
    try:
        reader.read(folder)
    except UserError as error:
        return str(error)
    finally:
        assert _tree(root, folder) == before
    return None


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_names_that_lead_elsewhere_are_refused_and_their_file_is_named(
    reader: Reader, root: Path, place: Place
) -> None:
    names: list[Name] = [*ELSEWHERE, *(LINKS if reader.links else []), *([] if reader.key else NO_NAMES)]
    for name in names:
        problem = _try(reader, place(reader), root, name)
        if problem is not None:
            assert reader.source in problem and problem.isprintable(), (name, problem)
        else:
            assert reader.ignores or not reader.is_refused(name), name


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@given(name=st.lists(st.sampled_from(PARTS) | st.text(max_size=3), min_size=1, max_size=5).map("/".join))
@settings(max_examples=25)
def test_no_name_reaches_anything_outside(reader: Reader, root: Path, place: Place, name: str) -> None:
    _try(reader, place(reader), root, name)
