"""`tolktrain prepare`: parts done by processes of one or many machines, put together by the task that ends last.

The output holds, besides a folder for each split, `preparation.json` (what is being prepared), `parts/` (a file for
each finished part), and in the end the tokenizers, `failures.jsonl` and `summary.json`. A part is a function of the
configuration and the input alone, so a killed preparation continues where it was, and tasks need no coordination.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from tolktrain import __version__
from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.index import INDEX_FILE, check_entries
from tolktrain.data.records import CONVERSATION_VERSION, DATASET_FILE, SCHEMA_VERSION
from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json
from tolktrain.prepare.job.gpus import num_gpus, share_gpus
from tolktrain.prepare.job.parts import PARTS_FOLDER, FailureEntry, PartResult, Workplace, do_part, part_name
from tolktrain.prepare.job.progress import ProgressDisplay
from tolktrain.prepare.job.shards import Counts
from tolktrain.prepare.job.splits import SPLITS
from tolktrain.prepare.job.summary import Summary
from tolktrain.prepare.job.workers import Done, Progress, Report, run_tasks
from tolktrain.prepare.kind import Kind, Part
from tolktrain.prepare.kinds import make_kind, preparation_of, tokenizer_files
from tolktrain.prepare.unused import Unused, UnusedItem
from tolktrain.prepare.utterances import Failure
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage

PREPARATION_FILE = "preparation.json"
FAILURES_FILE = "failures.jsonl"
SUMMARY_FILE = "summary.json"
# Libraries whose versions may change a unit, an id or a byte of a shard.
LIBRARIES = ("mosaicml-streaming", "numpy", "scipy", "soundfile", "soxr", "tokenizers", "torch", "transformers", "zstd")


@dataclass(frozen=True)
class Task:
    """The share of one machine: parts `number`, `number + total`, ..."""

    number: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.total:
            raise UserError(f"task {self.number} of {self.total} does not exist; tasks are counted from 0")


def prepare(
    config: PrepareConfig,
    task: Task,
    display: ProgressDisplay,
    retry: bool = False,
) -> None:
    """Do this task's parts, and put the set together if all parts are done then.

    With `retry`, parts with failed entries are done again, because their audio or word times were corrected in place.
    May be left anywhere by an exception such as `StopRaised`: what is written is complete or absent, and doing the same
    again continues from there. Raises `UserError` when the input, the output or the share of failures is bad.
    """
    storage = open_storage(config.output)
    preparing = preparation_of(config)
    display.print_line(f"reading {preparing.source(config)}")
    kind = make_kind(preparing.without_gpu(config), display.print_line)
    parts, rejected = kind.parts()
    unused = kind.unused.take()
    for item in unused:
        display.print_line(item.line())
    if not parts:
        raise UserError(f"{preparing.source(config)} holds nothing to prepare{_first(rejected)}")
    preparation = _claim(storage, _description(config, kind, parts))
    finished = set(storage.names(f"{PARTS_FOLDER}/"))
    own = range(task.number, len(parts), task.total)
    mine = [n for n in own if part_name(n) not in finished or (retry and _read_part(storage, n, preparation).failures)]
    _do(config, parts, mine, preparation, display)
    finished = set(storage.names(f"{PARTS_FOLDER}/"))
    missing = [n for n in range(len(parts)) if part_name(n) not in finished]
    if missing:
        display.print_line(
            f"this task's parts are done; {len(missing)} of {len(parts)} parts of other tasks are not: the task that"
            " ends last puts the set together. If none is running any more, run their command again"
        )
        return
    _finish(config, kind, storage, len(parts), preparation, rejected, unused).show(config.output, display.console)


def _first(rejected: Sequence[Failure]) -> str:
    if not rejected:
        return ""
    first = rejected[0]
    return f": {len(rejected)} entries are unusable, the first ({first.id}): {first.detail}"


def _description(config: PrepareConfig, kind: Kind, parts: Sequence[Part]) -> dict[str, Any]:
    """Everything that the bytes of the set depend on, and nothing about where or how fast it is computed."""
    settings = config.model_dump(mode="json", exclude={"output", "processes", "largest_failed_share"})
    if config.dialogue is None:  # other kinds are described as before there were dialogues
        settings.pop("dialogue")
    for key in ("device", "batch_seconds"):
        (settings["recordings"] or settings.get("dialogue") or {}).pop(key, None)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.num_entries, *part.inputs], default=_plain, ensure_ascii=True).encode())
    return {
        "schema_version": SCHEMA_VERSION if kind.packing is None else CONVERSATION_VERSION,
        "tolktrain": __version__,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "settings": settings,
        "inputs": {**kind.fingerprint(), "parts": digest.hexdigest(), "num_parts": len(parts)},
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _plain(item: Any) -> Any:
    """What the records depend on: not where an utterance was found, nor where others were."""
    return {key: value for key, value in asdict(item).items() if key not in ("place", "namesake")}


def _claim(storage: Storage, description: dict[str, Any]) -> str:
    """Write preparation.json and return its digest. Raises `UserError` if the output holds something else.

    Tasks that start at once may overwrite each other's description: what counts is the digest in each part.
    """
    content = (json.dumps(description, indent=2, sort_keys=True) + "\n").encode()
    present = storage.read(PREPARATION_FILE)
    if present is None:
        others = [name for name in storage.names() if name.rpartition("/")[2] in (INDEX_FILE, DATASET_FILE)]
        if others:
            raise UserError(
                f"{storage.address} holds {others[0]}, which is not of a preparation; set output to another place"
            )
        storage.write(PREPARATION_FILE, content)
    elif present != content:
        raise UserError(
            f"{storage.address} holds another preparation: {_difference(present, description)}; continue with"
            f" the settings in its {PREPARATION_FILE}, set output to another place, or delete what is there"
        )
    return hashlib.sha256(content).hexdigest()


def _read_part(storage: Storage, number: int, preparation: str) -> PartResult:
    path = storage.path_of(part_name(number))
    try:
        part = PartResult.model_validate_json(storage.read(part_name(number)) or b"")
    except ValidationError:
        part = None
    if part is None or part.preparation != preparation or part.counts.keys() != part.shards.keys():
        raise UserError(
            f"{path} is damaged, or of another preparation, which a task with other"
            " settings or versions of libraries began at the same time; delete the output and start all tasks alike"
        )
    for shards in part.shards.values():
        check_entries(shards, path)
    return part


def _difference(present: bytes, description: dict[str, Any]) -> str:
    try:
        there = _flat(parse_json(present))
    except ValueError:
        return f"its {PREPARATION_FILE} is damaged"
    here = _flat(json.loads(json.dumps(description)))
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    differences = [f"{key} is {here.get(key)!r} here and {there.get(key)!r} there" for key in keys[:3]]
    return "; ".join(differences) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


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
    preparation: str,
    display: ProgressDisplay,
) -> None:
    """Do the given parts."""
    if not mine:
        return
    tasks = [(number, parts[number]) for number in mine]
    # Parts of text files only estimate their entries: a share of failures that is certain to be too large ends the
    # command at once.
    allowed = 2 * config.largest_failed_share * sum(part.num_entries for part in parts)
    display.begin(sum(part.num_entries for _, part in tasks), len(tasks))
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="tolktrain-prepare-") as folder, display:
        place = Workplace(open_storage(config.output), preparation, folder)
        processes = config.processes or _default_processes(config)
        events = run_tasks(partial(_worker, config, place), tasks, processes, preload=[__name__])
        with contextlib.closing(events):  # the processes end before their folder is removed
            for event in events:
                if isinstance(event, Progress):
                    display.advance(event.entries)
                elif isinstance(event, Done):
                    failed.update(failure.reason for failure in event.result.failures)
                    display.part_done(event.result)
                    if failed.total() > allowed:
                        raise _too_many(config, failed, "so far")


def _worker(config: PrepareConfig, place: Workplace, number: int) -> Callable[[tuple[int, Part], Report], PartResult]:
    """The work of process `number`: it reads tokenizers once, then does one part after the other."""
    if preparation_of(config).uses_gpu(config):
        share_gpus(number)
    kind = make_kind(config)
    return lambda task, report: do_part(config, kind, place, task[0], task[1], report)


def _default_processes(config: PrepareConfig) -> int:
    """One for each GPU, if models run on them; else one for each core that this process may use."""
    if preparation_of(config).uses_gpu(config) and (number := num_gpus()):
        return number
    return len(os.sched_getaffinity(0))


def _reasons(failed: "Counter[str]") -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in failed.most_common())


def _too_many(config: PrepareConfig, failed: "Counter[str]", when: str) -> UserError:
    return UserError(
        f"{failed.total():,} entries failed {when} ({_reasons(failed)}), more than largest_failed_share"
        f" {config.largest_failed_share:g} allows; {config.output}/{PARTS_FOLDER} and, in the end, {FAILURES_FILE} name"
        " each: correct their files and start again with --retry, or raise largest_failed_share"
    )


def _write_tokenizers(config: PrepareConfig, storage: Storage) -> None:
    """Put the tokenizers next to the data, where training and `--inspect` find them."""
    for path, name in tokenizer_files(config):
        storage.upload(path, name)


def _finish(
    config: PrepareConfig,
    kind: Kind,
    storage: Storage,
    num_parts: int,
    preparation: str,
    rejected: Sequence[Failure],
    listed: Sequence[UnusedItem],
) -> Summary:
    """Put the parts together. The same parts give the same files, so several machines may do it at once."""
    failures = [FailureEntry.of(failure) for failure in rejected]
    unused = Unused()
    unused.join(listed)
    counts: dict[str, Counts] = {}
    shards: dict[str, list[dict[str, Any]]] = {}
    num_items = len(rejected)
    for number in range(num_parts):
        part = _read_part(storage, number, preparation)
        num_items += part.num_items
        failures += part.failures
        unused.join(part.unused)
        for split, count in part.counts.items():
            counts.setdefault(split, Counts()).join(count)
            shards.setdefault(split, []).extend(part.shards[split])
    storage.write(
        FAILURES_FILE, "".join(failure.model_dump_json(exclude_none=True) + "\n" for failure in failures).encode()
    )
    failed = Counter(failure.reason for failure in failures)
    if failed.total() > config.largest_failed_share * num_items:
        raise _too_many(config, failed, f"of {num_items:,}")
    if not counts:
        raise UserError(
            f"no record was made of {num_items:,} entries ({_reasons(failed)});"
            f" {config.output}/{FAILURES_FILE} has the details"
        )
    _write_tokenizers(config, storage)
    infos = {}
    for split in [split for split in SPLITS if split in counts]:
        info = infos[split] = counts[split].describe(
            name=config.name,
            split=split,
            license=config.license,
            text=kind.text,
            speech=kind.speech,
            packing=kind.packing,
        )
        storage.write(f"{split}/{INDEX_FILE}", json.dumps({"version": 2, "shards": shards[split]}).encode())
        storage.write(f"{split}/{DATASET_FILE}", info.to_json().encode())
    summary = Summary(splits=infos, num_items=num_items, failed=dict(sorted(failed.items())), unused=unused.take())
    storage.write(SUMMARY_FILE, summary.to_json().encode())
    return summary
