"""What a preparation reads over: fields that no reader uses, and files that belong to no utterance."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

_MOST_ITEMS = 200  # a manifest may have another key on every line
_FURTHER = "further fields and files"
_LONGEST = 200  # characters


class UnusedItem(BaseModel):
    """A field, or the files of a suffix, of which nothing was used."""

    model_config = ConfigDict(extra="forbid")

    what: str = Field(description="The field, or the suffix of the files.")
    count: int = Field(gt=0, description="Entries that have the field, or number of files.")
    first: str = Field(description="The first entry or file.")

    def line(self) -> str:
        """One line about it."""
        return f"not used ({self.count:,}, first: {self.first}): {self.what}"


class Unused:
    """Counts what is not used. Each kind of thing is one item, however often it occurs."""

    def __init__(self) -> None:
        self._items: dict[str, UnusedItem] = {}

    def add(self, what: str, first: str, count: int = 1) -> None:
        """Count `what`; `first` is kept if it was not counted before. Invalid text is escaped."""
        what, first = _valid(what), _valid(first)
        if what not in self._items and len(self._items) >= _MOST_ITEMS:
            what = _FURTHER
        found = self._items.get(what)
        if found is None:
            self._items[what] = UnusedItem(what=what, count=count, first=first)
        else:
            found.count += count

    def join(self, items: Iterable[UnusedItem]) -> None:
        """Count what was counted elsewhere."""
        for item in items:
            self.add(item.what, item.first, item.count)

    def take(self) -> list[UnusedItem]:
        """The items in the order of their first occurrence; counting starts again."""
        items, self._items = list(self._items.values()), {}
        return items


def _valid(text: str) -> str:
    shown = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
