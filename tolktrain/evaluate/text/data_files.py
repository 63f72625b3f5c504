"""Finds the files of a data set in a local folder: a copy of its repository on the Hugging Face hub, or own files."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.evaluate.text.catalog import TextTask
from tolktrain.files.reading import bounded_lines, open_regular, parse_json, require_regular

_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
_SPLITS = {"validation": {"validation", "valid", "val", "dev"}, "test": {"test"}, "train": {"train"}}
_DEEPEST = 4  # folders below that of the data set


def find_files(task: TextTask, data_dir: Path) -> tuple[str, list[Path]]:
    """The format (of the library datasets) and the files of the split that a task evaluates, in order.

    A file belongs to the split if a word of its name is the split's, such as `validation-00000-of-00001.parquet` or
    `hellaswag_val.jsonl`; and to the part (configuration) if a folder on its path has the part's name, or its own name
    begins with it. A file that is named as the part, without a split, is taken too: `adjunct_island.jsonl`.

    Raises:
        UserError: there is no such file, a shard of several is missing, or several files match.
    """
    data = task.data
    folder = data_dir / data.folder
    part = f"{task.part}/" if task.part else ""
    wanted = f"{folder}/{part}{data.split}.jsonl or .parquet, or a copy of the data set {data.hub} in {folder}"
    if not folder.is_dir():
        raise UserError(f"--data-dir: {folder}, the data of {task.name}, does not exist; it should hold {wanted}")
    found: dict[Path, list[Path]] = {}
    for path in _candidates(folder):
        if _belongs(path.relative_to(folder), task):
            shard = _SHARD.fullmatch(path.stem)
            found.setdefault(path.with_name(shard[1] if shard else path.stem), []).append(path)
    if not found:
        raise UserError(f"--data-dir: {folder} has no file of the split {data.split} for {task.name}; needed: {wanted}")
    if len(found) > 1 or len({path.suffix for path in next(iter(found.values()))}) > 1:
        names = ", ".join(sorted(str(path) for paths in found.values() for path in paths)[:5])
        raise UserError(f"--data-dir: several files could be the data of {task.name}: {names}; keep one of them there")
    [paths] = found.values()
    _refuse_missing_shards(paths, task)
    return _FORMATS[paths[0].suffix], paths


def check_fields(task: TextTask, kind: str, paths: Sequence[Path]) -> None:
    """Raise UserError if the first item of a file lacks a field that the task needs, or the file cannot be read."""
    for path in paths:
        try:
            there = _parquet_fields(path) if kind == "parquet" else _json_fields(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--data-dir: {path} cannot be read ({error}); get the file from its source again"
            ) from None
        missing = [field for field in task.data.fields if field not in there]
        if missing:
            raise UserError(
                f"--data-dir: {path} has no field {missing[0]!r}, which {task.name} needs; it has"
                f" {', '.join(there) or 'none'}. The fields must be those of the data set {task.data.hub}"
            )


def _parquet_fields(path: Path) -> list[str]:
    from pyarrow import parquet

    require_regular(path)
    names: list[str] = parquet.read_schema(path).names
    return names


def _json_fields(path: Path) -> list[str]:
    with open_regular(path) as file:
        for line in bounded_lines(file):
            if line.strip():
                item = parse_json(line)
                return list(item) if isinstance(item, dict) else []
    raise ValueError("it is empty")


def _candidates(folder: Path) -> Iterator[Path]:
    try:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder).parts
            if path.suffix in _FORMATS and len(inner) <= _DEEPEST and not any(name.startswith(".") for name in inner):
                yield path
    except OSError as error:
        raise UserError(f"--data-dir: {folder} cannot be read ({error.strerror})") from None


def _belongs(path: Path, task: TextTask) -> bool:
    stem = path.stem
    if task.part is not None:
        if stem == task.part:
            return True
        inside = task.part in path.parent.parts
        if not inside and not re.match(re.escape(task.part) + r"[-_.]", stem):
            return False
        stem = stem if inside else stem[len(task.part) :]
    return not _SPLITS[task.data.split].isdisjoint(re.split(r"[-_.]", stem.lower()))


def _refuse_missing_shards(paths: list[Path], task: TextTask) -> None:
    matches = [match for path in paths if (match := _SHARD.fullmatch(path.stem))]
    if not matches and len(paths) == 1:
        return
    there = {(int(match[2]), int(match[3])) for match in matches}
    total = max((count for _, count in there), default=0)
    missing = sorted(set(range(total)) - {number for number, _ in there})
    if missing or len(there) != len(paths) or {count for _, count in there} != {total}:
        what = f"part {missing[0]} of {total} is missing" if missing else "their numbers contradict each other"
        raise UserError(f"--data-dir: the files of {task.name}, such as {paths[0]}, are incomplete: {what}")
