"""Tiny text data sets with the fields and the file names of the real ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("Mia", "Tom", "Ben", "Lily", "Sam", "Anna")
PLACES = ("garden", "house", "river", "forest", "school", "market")
THINGS = ("ball", "cake", "boat", "kite", "book", "lamp")


def write_lines(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """A JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def write_parquet(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """The same as Parquet, as in the repositories of the hub."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(items)), path)


def _items() -> list[tuple[str, str, str, str]]:
    """Name, place, thing and another thing."""
    return [(NAMES[i], PLACES[i], THINGS[i], THINGS[(i + 2) % 6]) for i in range(6)]


def write_text_data(folder: Path) -> None:
    """Six items of each task, two in each part of BLiMP and MMLU."""
    hellaswag = [
        {
            "activity_label": "Playing",
            "ctx_a": f"{name} goes to the {place}.",
            "ctx_b": "there",
            "ctx": "",
            "endings": [f"{name} finds a {thing} [title].", f"{name} eats the {place}.", "it rains.", f"a {other}."],
            "label": str(number % 4),
        }
        for number, (name, place, thing, other) in enumerate(_items())
    ]
    shards = ("validation-00000-of-00002", hellaswag[:4]), ("validation-00001-of-00002", hellaswag[4:])
    for stem, items in shards:
        write_parquet(folder / "hellaswag" / "data" / f"{stem}.parquet", items)
    write_lines(folder / "hellaswag" / "data" / "train.jsonl", hellaswag[:1])
    arc = [
        {
            "id": f"q{number}",
            "question": f"Where does {name} see the {thing}?",
            "choices": {"text": [f"in the {place}", "nowhere", f"in a {other}"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number, (name, place, thing, other) in enumerate(_items())
    ]
    write_parquet(folder / "ai2_arc" / "ARC-Easy" / "test-00000-of-00001.parquet", arc)
    piqa = [
        {"goal": f"find the {thing}", "sol1": f"look in the {place}", "sol2": f"eat the {other} twice", "label": n % 2}
        for n, (_, place, thing, other) in enumerate(_items())
    ]
    write_lines(folder / "piqa" / "valid.jsonl", piqa)
    winogrande = [
        {
            "sentence": f"{name} took the {thing} and not the {other} because the _ was new.",
            "option1": thing,
            "option2": other,
            "answer": str(1 + number % 2),
        }
        for number, (name, _, thing, other) in enumerate(_items())
    ]
    write_lines(folder / "winogrande" / "winogrande_xl" / "validation.jsonl", winogrande)
    lambada = [{"text": f"{name} was in the {place} and lost a {thing}"} for name, place, thing, _ in _items()]
    write_lines(folder / "lambada_openai" / "test.jsonl", lambada)
    for part, verb in (("adjunct_island", "runs"), ("causative", "sleeps")):
        pairs = [
            {"sentence_good": f"{name} {verb} in the {place}.", "sentence_bad": f"{name} {verb[:-1]} in the {place}."}
            for name, place, _, _ in _items()[:2]
        ]
        write_lines(folder / "blimp" / f"{part}.jsonl", pairs)
    mmlu = [
        {"question": f"What is a {thing}?", "choices": [thing, other, place, name], "answer": n % 4}
        for n, (name, place, thing, other) in enumerate(_items())
    ]
    write_parquet(folder / "mmlu" / "anatomy" / "test-00000-of-00001.parquet", mmlu)


TASKS = (
    *("hellaswag", "arc_easy", "piqa", "winogrande", "lambada_openai", "mmlu_anatomy"),
    *("blimp_adjunct_island", "blimp_causative"),
)
