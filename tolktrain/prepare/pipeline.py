"""`tolktrain prepare`: parts done by processes of one or many machines, put together by whoever ends last.

The output holds, besides a folder for each split, `preparation.json` (what is being prepared), `parts/` (a file for
each finished part), and in the end the tokenizers, `failures.jsonl` and `summary.json`. A part is a function of the
configuration and the input alone, so a killed preparation goes on where it was, and nobody need know who does what.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tolktrain import __version__
from tolktrain.config.errors import UserError
from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.folder import INDEX_FILE
from tolktrain.data.records import DATASET_FILE, SCHEMA_VERSION
from tolktrain.data.storage import Storage
from tolktrain.prepare.items import Failure
from tolktrain.prepare.kind import Kind, Part
from tolktrain.prepare.kinds import make_kind, tokenizer_files
from tolktrain.prepare.part import PARTS_FOLDER, FailureEntry, PartResult, do_part, part_name
from tolktrain.prepare.progress import Narrator
from tolktrain.prepare.shards import Counts
from tolktrain.prepare.splits import SPLITS
from tolktrain.prepare.summary import Summary
from tolktrain.prepare.workers import Done, Progress, Report, run_tasks

PREPARATION_FILE = "preparation.json"
FAILURES_FILE = "failures.jsonl"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Task:
    """The share of one machine: parts `number`, `number + total`, ..."""

    number: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.total:
            raise UserError(f"task {self.number} of {self.total} does not exist; tasks are counted from 0")


def prepare(config: PrepareConfig, task: Task, narrator: Narrator, stop_requested: Callable[[], bool]) -> bool:
    """Do this task's parts, and put the set together if all parts are done then.

    Returns False if it was asked to stop before its parts were done. Raises `UserError` when the input, the output or
    the share of failures is bad.
    """
    storage = Storage(config.output)
    narrator.say(f"reading {_source(config)}")
    kind = make_kind(config, narrator.say)
    parts, rejected = kind.parts()
    if not parts:
        raise UserError(f"{_source(config)} holds nothing to prepare{_first(rejected)}")
    _claim(storage, _description(config, kind, parts))
    finished = set(storage.names(f"{PARTS_FOLDER}/"))
    mine = [n for n in range(task.number, len(parts), task.total) if part_name(n) not in finished]
    if not _do(config, parts, mine, narrator, stop_requested):
        return False
    finished = set(storage.names(f"{PARTS_FOLDER}/"))
    missing = [n for n in range(len(parts)) if part_name(n) not in finished]
    if missing:
        narrator.say(
            f"this task's parts are done; {len(missing)} of {len(parts)} parts of other tasks are not: the task that"
            " ends last puts the set together. If none is running any more, run their command again"
        )
        return True
    _finish(config, kind, storage, len(parts), rejected).show(config.output, narrator.console)
    return True


def _source(config: PrepareConfig) -> str:
    if config.recordings is not None:
        return config.recordings.manifest
    if config.published is not None:
        return config.published.folder
    assert config.text is not None
    return ", ".join(config.text.files)


def _first(rejected: Sequence[Failure]) -> str:
    if not rejected:
        return ""
    return f": {len(rejected)} entries are unusable, the first ({rejected[0].id}): {rejected[0].detail}"


def _description(config: PrepareConfig, kind: Kind, parts: Sequence[Part]) -> dict[str, Any]:
    """All that the bytes of the set depend on. Where it is computed, and how fast, is not among it."""
    settings = config.model_dump(mode="json", exclude={"output", "processes", "largest_failed_share"})
    for key in ("device", "batch_seconds"):
        (settings["recordings"] or {}).pop(key, None)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.num_items, *part.items], default=_plain, ensure_ascii=True).encode())
    return {
        "schema_version": SCHEMA_VERSION,
        "tolktrain": __version__,
        "settings": settings,
        "inputs": {**kind.fingerprint(), "parts": digest.hexdigest(), "num_parts": len(parts)},
    }


def _plain(item: Any) -> Any:
    return asdict(item)


def _claim(storage: Storage, description: dict[str, Any]) -> None:
    """Say in the output what is prepared there; refuse an output that holds something else."""
    content = (json.dumps(description, indent=2, sort_keys=True) + "\n").encode()
    present = storage.read(PREPARATION_FILE)
    if present is None:
        others = [name for name in storage.names() if name.endswith((INDEX_FILE, DATASET_FILE))]
        if others:
            raise UserError(
                f"{storage.address} holds {others[0]}, which is not of a preparation; give output another place"
            )
        storage.write(PREPARATION_FILE, content)
        return
    if present != content:
        raise UserError(
            f"{storage.address} holds another preparation: {_difference(present, description)}; go on with the"
            f" settings that {PREPARATION_FILE} there tells, give output another place, or delete what is there"
        )


def _difference(present: bytes, description: dict[str, Any]) -> str:
    try:
        there = _flat(json.loads(present))
    except (ValueError, RecursionError):
        return f"its {PREPARATION_FILE} is damaged"
    here = _flat(json.loads(json.dumps(description)))
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    told = [f"{key} is {here.get(key)!r} here and {there.get(key)!r} there" for key in keys[:3]]
    return "; ".join(told) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: value for name, child in tree.items() for key, value in _flat(child, f"{path}.{name}".strip(".")).items()
    }


def _do(
    config: PrepareConfig,
    parts: Sequence[Part],
    mine: Sequence[int],
    narrator: Narrator,
    stop_requested: Callable[[], bool],
) -> bool:
    """Do the given parts; False when asked to stop before they are done."""
    if not mine:
        return True
    tasks = [(number, parts[number]) for number in mine]
    # Parts of text files only estimate their items: what is certain to fail in the end is told at once.
    allowed = 2 * config.largest_failed_share * sum(part.num_items for part in parts)
    narrator.begin(sum(part.num_items for _, part in tasks), len(tasks))
    failed: Counter[str] = Counter()
    try:
        processes = config.processes or default_processes()
        for event in run_tasks(partial(_worker, config), tasks, processes, preload=[__name__]):
            if isinstance(event, Progress):
                narrator.advance(event.items)
            elif isinstance(event, Done):
                failed.update(failure.reason for failure in event.result.failures)
                narrator.part_done(event.result)
                if failed.total() > allowed:
                    raise _too_many(config, failed, "so far")
            if stop_requested():
                return False
    finally:
        narrator.end()
    return True


def _worker(config: PrepareConfig) -> Callable[[tuple[int, Part], Report], PartResult]:
    """What a process does: it reads tokenizers once, then does part after part."""
    kind = make_kind(config)
    storage = Storage(config.output)
    return lambda task, report: do_part(config, kind, storage, task[0], task[1], report)


def default_processes() -> int:
    """As many processes as this process may use cores."""
    return len(os.sched_getaffinity(0))


def _too_many(config: PrepareConfig, failed: "Counter[str]", when: str) -> UserError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in failed.most_common())
    return UserError(
        f"{failed.total():,} items failed {when} ({reasons}), more than largest_failed_share"
        f" {config.largest_failed_share:g} allows; {config.output}/{PARTS_FOLDER} and, in the end, {FAILURES_FILE} name"
        " each: mend them, or raise largest_failed_share"
    )


def _write_tokenizers(config: PrepareConfig, storage: Storage) -> None:
    """Put the tokenizers beside the data, where training and `--inspect` find them."""
    for path, name in tokenizer_files(config):
        storage.upload(path, name)


def _finish(
    config: PrepareConfig, kind: Kind, storage: Storage, num_parts: int, rejected: Sequence[Failure]
) -> Summary:
    """Put the parts together. The same parts give the same files, so several machines may do it at once."""
    failures = [FailureEntry.of(failure) for failure in rejected]
    counts: dict[str, Counts] = {}
    shards: dict[str, list[dict[str, Any]]] = {}
    num_items = len(rejected)
    for number in range(num_parts):
        content = storage.read(part_name(number))
        assert content is not None, "parts are never deleted"
        part = PartResult.model_validate_json(content)
        num_items += part.num_items
        failures += part.failures
        for split, count in part.counts.items():
            counts.setdefault(split, Counts()).join(count)
            shards.setdefault(split, []).extend(part.shards[split])
    storage.write(FAILURES_FILE, "".join(failure.model_dump_json() + "\n" for failure in failures).encode())
    failed = Counter(failure.reason for failure in failures)
    if failed.total() > config.largest_failed_share * num_items:
        raise _too_many(config, failed, f"of {num_items:,}")
    if not counts:
        raise UserError(f"no record was made of {num_items:,} items; {config.output}/{FAILURES_FILE} says why")
    _write_tokenizers(config, storage)
    infos = {}
    for split in [split for split in SPLITS if split in counts]:
        info = infos[split] = counts[split].describe(
            name=config.name, split=split, license=config.license, text=kind.text, speech=kind.speech
        )
        storage.write(f"{split}/{INDEX_FILE}", json.dumps({"version": 2, "shards": shards[split]}).encode())
        storage.write(f"{split}/{DATASET_FILE}", info.to_json().encode())
    summary = Summary(splits=infos, num_items=num_items, failed=dict(sorted(failed.items())))
    storage.write(SUMMARY_FILE, (summary.model_dump_json(indent=2) + "\n").encode())
    return summary
