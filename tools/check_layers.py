"""Checks that imports point downwards, and that no modules or packages import each other in a circle.

    python tools/check_layers.py

Every import counts: at the top of a module, inside a function, and for type checkers only. `make lint` runs this.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, KERNELS = "tolktrain", "tolktrain_kernels"

_MODULES = ("errors", "vocabulary")
Layers = Mapping[str, tuple[str, ...]]  # from the highest to the lowest
Forbidden = Mapping[tuple[str, str], str]
Graph = Mapping[str, frozenset[str]]

# Packages and modules right under tolktrain/, the sub-packages listed here apart from the rest of theirs.
# A part imports parts of its own layer and of those below.
LAYERS: Layers = {
    "command line": ("__main__", "cli"),
    "features": (
        "train",
        "analyze",
        "evaluate",
        "benchmark",
        "compare",
        "demo",
        "generate",
        "inspect",
        "interop",
        "plan",
        "prepare",
        "report",
        "tune",
    ),
    "core": ("model", "data", "runs", "checkpoint"),
    "ground": (
        "parallel",
        "storage",
        "units",
        "cluster",
        "cluster.health",
        "cluster.watch",
        "config",
        "files",
        "libraries",
        *_MODULES,
    ),
}
_READERS = (
    *("analyze", "compare", "demo", "evaluate", "generate", "inspect", "interop"),
    *("plan", "prepare", "report", "tune"),
)
# What a part must not import although it is in reach, and why.
FORBIDDEN: Forbidden = {
    ("model", "data"): "the model knows nothing of data files",
    ("data", "model"): "data knows nothing of the model",
    ("model", "checkpoint"): "the model knows nothing of how it is stored",
    ("checkpoint", "data"): "checkpoints know nothing of data files",
    ("train", "prepare"): "training reads prepared sets as anybody does",
    **{(part, "train"): "runs/ reads the folder of a run" for part in _READERS},
}


@dataclass(frozen=True)
class Sources:
    """Modules of a package, and which of them each imports."""

    imports: Graph  # dotted names, the package itself included
    foreign: Graph  # top-level names of other packages

    @classmethod
    def read(cls, folder: Path, package: str) -> "Sources":
        """Parse every file of the package in `folder`.

        Raises:
            ValueError: an import is relative.
        """
        files = {_module(path.relative_to(folder), package): path for path in sorted(folder.rglob("*.py"))}
        imports, foreign = {}, {}
        for module, path in files.items():
            names = set(_imported(path))
            own = {name for name in names if name.split(".")[0] == package}
            # `from package.module import name` is an import of package.module, unless the name is a module too.
            found = {name if name in files else name.rpartition(".")[0] for name in own}
            imports[module] = frozenset(found & set(files)) - {module}
            foreign[module] = frozenset(name.split(".")[0] for name in names - own)
        return cls(imports, foreign)


def _module(path: Path, package: str) -> str:
    parts = (package, *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno} imports relatively; write the whole name")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cycle(graph: Graph) -> list[str]:
    """Nodes of a circle, the first one repeated at the end; empty if there is none."""
    done: set[str] = set()
    for start in sorted(graph):
        trail: list[tuple[str, Iterator[str]]] = [(start, iter(sorted(graph[start])))] if start not in done else []
        on_trail = {start}
        while trail:
            node, rest = trail[-1]
            following = next((other for other in rest if other not in done), None)
            if following is None:
                trail.pop()
                on_trail.discard(node)
                done.add(node)
            elif following in on_trail:
                names = [name for name, _ in trail]
                return [*names[names.index(following) :], following]
            else:
                trail.append((following, iter(sorted(graph[following]))))
                on_trail.add(following)
    return []


def part_of(module: str, parts: Iterable[str]) -> str | None:
    """The part that a module belongs to, the longest name that fits; None for the package's own __init__."""
    name = module.partition(".")[2]
    fitting = [part for part in parts if name == part or name.startswith(f"{part}.")]
    return max(fitting, key=len) if fitting else name.partition(".")[0] or None


def problems(sources: Sources, layers: Layers = LAYERS, forbidden: Forbidden = FORBIDDEN) -> list[str]:
    """What is wrong, one line each."""
    height = {part: -number for number, parts in enumerate(layers.values()) for part in parts}
    named = {part: layer for layer, parts in layers.items() for part in parts}
    found, edges = [], dict[str, set[str]]()
    for module, others in sources.imports.items():
        here = part_of(module, named)
        if here is None:
            continue
        edges.setdefault(here, set())
        if here not in named:
            found.append(f"{module}: {here} has no layer; name it in LAYERS")
            continue
        for other in sorted(others):
            there = part_of(other, named)
            if there is None or there == here or there not in named:
                continue
            edges[here].add(there)
            if height[there] > height[here]:
                found.append(f"{module} ({named[here]}) imports {other} ({named[there]}): imports point downwards")
            elif (here, there) in forbidden:
                found.append(f"{module} imports {other}: {forbidden[here, there]}")
    for kind, graph in (("modules", sources.imports), ("parts", {a: frozenset(b) for a, b in edges.items()})):
        circle = cycle(graph)
        if circle:
            found.append(f"{kind} import each other: {' -> '.join(circle)}")
    return found


def main() -> int:
    """Print what is wrong; returns the exit code."""
    found = problems(Sources.read(ROOT / PACKAGE, PACKAGE))
    for module, names in Sources.read(ROOT / "kernels", KERNELS).foreign.items():
        if PACKAGE in names:
            found.append(f"{module} imports {PACKAGE}: kernels know nothing of it")
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
