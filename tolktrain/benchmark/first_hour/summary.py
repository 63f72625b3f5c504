"""The results as one page: the most important tables first."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tolktrain.benchmark.first_hour.results import Record
from tolktrain.benchmark.first_hour.schedule import DONE, NOT_RUN

_ERROR_LINES = 6


def summary(records: Sequence[Record]) -> str:
    """Markdown of all records; of measurements that were repeated, the last ones."""
    latest = _latest(records)
    parts = [_facts(latest)]
    for heading, kind, table in _TABLES:
        mine = [record for record in latest if record["kind"] == kind]
        if mine:
            parts.append([f"## {heading}", "", *table(mine), ""])
    parts.append(_pieces([record for record in records if record["kind"] == "outcome"]))
    return "\n".join(line for part in parts for line in part) + "\n"


def _latest(records: Iterable[Record]) -> list[Record]:
    """Without what a piece had measured before it was started again."""
    kept: list[Record] = []
    for record in records:
        if record["kind"] == "start":
            kept = [other for other in kept if other["piece"] != record["piece"]]
        else:
            kept.append(record)
    return kept


def _facts(records: Sequence[Record]) -> list[str]:
    lines = ["# The first hour on a GPU", ""]
    for record in records:
        if record["kind"] == "facts":
            lines += [f"- {name}: {value}" for name, value in record["values"].items()]
        elif record["kind"] == "device":
            names = ("name", "memory_gib", "capability", "cuda", "cudnn")
            lines.append("- device: " + ", ".join(f"{name} {_number(record.get(name))}" for name in names))
        elif record["kind"] == "health":
            answer = "right" if record["is_within"] else "WRONG"
            lines.append(f"- a product in float32: relative error {_number(record['relative_error'])}, {answer}")
        elif record["kind"] == "copy" and record["piece"] == "machine":
            lines.append(f"- copy rate: {record['bytes_per_second'] / 1e9:.0f} GB/s, read and written bytes counted")
    return [*lines, ""]


def _steps(records: Sequence[Record]) -> list[str]:
    def cells(step: Record) -> tuple[Any, ...]:
        head = (step["model"], step["provider"], f"{step['accumulation']} x {step['micro_batch_size']}")
        if step.get("out_of_memory"):
            return (*head, "out of memory", None, None, None, None)
        times = step["seconds_per_step"]
        milliseconds = f"{1e3 * times['p50']:.4g} ({1e3 * times['p20']:.4g} - {1e3 * times['p80']:.4g})"
        mfu = None if step["mfu"] is None else f"{100 * step['mfu']:.1f} %"
        memory = (step["peak_memory_gib"], step.get("peak_reserved_gib"))
        return (*head, f"{step['tokens_per_second']:,.0f}", milliseconds, mfu, *memory)

    headings = ("model", "provider", "micro batches", "tokens/s", "ms/step (20-80 %)", "MFU", "GiB", "reserved GiB")
    return _table(headings, map(cells, records))


def _numerics(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in dict.fromkeys(record["case"] for record in records):
        mine = [record for record in records if record["case"] == case]
        worst = max(mine, key=lambda r: (not r["is_within"], r["ours"] is None, r["ours"] or 0.0))
        within = sum(record["is_within"] for record in mine)
        rows.append((case, worst["tensor"], worst["ours"], worst["eager"], f"{within} of {len(mine)}"))
    return _table(("case", "worst tensor", "ours", "eager PyTorch", "within the tolerance"), rows)


def _tests(records: Sequence[Record]) -> list[str]:
    counts = {outcome: sum(r["outcome"] == outcome for r in records) for outcome in ("passed", "failed", "skipped")}
    failed = [f"- failed: {record['test']}" for record in records if record["outcome"] == "failed"]
    return [", ".join(f"{count} {outcome}" for outcome, count in counts.items()), "", *failed]


def _predictions(records: Sequence[Record]) -> list[str]:
    rows = [
        (
            f"{r['model']}, {r['accumulation']} micro batches",
            1e3 * r["seconds"],
            1e3 * r["measured_seconds"],
            _percent(r["seconds_error"]),
            r["allocated_gib"],
            r["measured_allocated_gib"],
            _percent(r["allocated_error"]),
            r["total_gib"],
            r["measured_reserved_gib"],
        )
        for r in records
    ]
    times = ("step", "predicted ms", "measured ms", "error")
    return _table((*times, "predicted GiB", "measured", "error", "predicted total", "reserved"), rows)


def _rows(records: Sequence[Record]) -> list[str]:
    first: dict[tuple[str, ...], float] = {}
    rows = []
    for r in records:
        base = first.setdefault((r["kernel"], r["shape"], r["dtype"], r["mode"]), r["ms_50"])
        speed = base / r["ms_50"] if r["ms_50"] else None
        share = None if r["copy_share"] is None else f"{r['copy_share']:.0%}"
        rows.append(
            (r["kernel"], r["shape"], r["mode"], r["provider"], r["ms_50"], speed, share, r["peak_bytes"] / 2**20)
        )
    return _table(("kernel", "shape", "mode", "provider", "ms", "speed-up", "share of copy", "peak MiB"), rows)


def _rates(records: Sequence[Record]) -> list[str]:
    rows = [
        (
            r["what"],
            r["shape"],
            r["mode"],
            r["provider"],
            r["ms_50"],
            (r["flops_per_second"] or 0) / 1e12 or None,
            r["error"],
        )
        for r in records
    ]
    return _table(("what", "shape", "mode", "provider", "ms", "TFLOP/s", "error"), rows)


def _counts(records: Sequence[Record]) -> list[str]:
    headings = ("model", "GB", "TFLOP", "launches", "bound ms", "likely ms", "measured ms")
    return _table(headings, [tuple(record.get(name) for name in _COUNT_FIELDS) for record in records])


_COUNT_FIELDS = ("model", "gigabytes", "teraflops", "launches", "bound_ms", "likely_ms", "measured_ms")


def _settings(records: Sequence[Record]) -> list[str]:
    return ["```", *(record["line"] for record in records), "```"]


_TABLES: tuple[tuple[str, str, Callable[[Sequence[Record]], list[str]]], ...] = (
    ("Training steps", "step", _steps),
    ("Errors of the kernels against float64", "numeric", _numerics),
    ("Tests on the device", "test", _tests),
    ("`tolktrain plan` against the measured steps", "prediction", _predictions),
    ("Counted steps", "count", _counts),
    ("Kernels", "row", _rows),
    ("Attention and products", "rate", _rates),
    ("Settings of the pooling kernels", "setting", _settings),
)


def _pieces(records: Sequence[Record]) -> list[str]:
    latest = {record["piece"]: record for record in records}
    lines = ["## Pieces", ""]
    rows = [
        (name, record["status"], f"{record['seconds']:.0f}", record["error"] if record["status"] == NOT_RUN else "")
        for name, record in latest.items()
    ]
    lines += _table(("piece", "", "seconds", ""), rows)
    for name, record in latest.items():
        if record["status"] not in (DONE, NOT_RUN) and record["error"]:
            shown = record["error"].strip().splitlines()[-_ERROR_LINES:]
            lines += ["", f"{name}: {record['status']}", "", *(f"    {line}" for line in shown)]
    return lines


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    shown = [[_number(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (list(headings), ["---"] * len(headings), *shown)]


def _number(cell: Any) -> str:
    if cell is None:
        return ""
    return (
        f"{cell:.3g}"
        if isinstance(cell, float) and abs(cell) < 1000
        else f"{cell:,.0f}"
        if isinstance(cell, float)
        else str(cell)
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:+.0f} %"
