"""The result of a preparation, and the entries, fields and files that it left out."""

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from tolktrain.data.records import DatasetInfo
from tolktrain.files.terminal import Console
from tolktrain.prepare.job.splits import TRAIN
from tolktrain.prepare.unused import UnusedItem


class Summary(BaseModel):
    """summary.json."""

    model_config = ConfigDict(extra="forbid")

    num_items: int = Field(ge=0, description="Utterances or documents that were to be prepared.")
    failed: dict[str, int] = Field(description="Entries that were not used, by reason.")
    splits: dict[str, DatasetInfo] = Field(description="Content of dataset.json of each split.")
    unused: list[UnusedItem] = Field(
        default=[], description="Fields that no reader uses, and files that belong to no utterance; absent if none."
    )

    def to_json(self) -> str:
        """The content of summary.json."""
        return self.model_dump_json(indent=2, exclude=None if self.unused else {"unused"}) + "\n"

    def show(self, output: str, console: Console) -> None:
        """Print the sizes of the splits and the shares of failures; `output` is the address of the set."""
        names = ("hours", "records", "text ids", "units", "words", "words/s")
        table = Table("split", title=f"prepared: {output}", title_justify="left")
        for name in names:
            table.add_column(name, justify="right")
        for split, info in self.splits.items():
            table.add_row(split, *_row(info))
        console.print(table)
        failed = sum(self.failed.values())
        console.print(f"{self.num_items - failed:,} of {self.num_items:,} entries used, {failed:,} not")
        for reason, count in sorted(self.failed.items(), key=lambda item: -item[1]):
            console.print(f"  {count:,} ({count / self.num_items:.2%}) {reason}", highlight=False)
        if failed:
            console.print(f"{output}/failures.jsonl names each", highlight=False, soft_wrap=True)
        for item in self.unused:
            console.print(item.line(), highlight=False, soft_wrap=True)
        if TRAIN not in self.splits:
            console.print(
                "nothing is left for training: every source is held out; lower heldout.sources and heldout.speakers"
            )


def _row(info: DatasetInfo) -> list[str]:
    seconds = info.hours * 3600
    return [
        f"{info.hours:,.2f}" if info.speech else "-",
        f"{info.num_records:,}",
        f"{info.num_text_tokens:,}" if info.text else "-",
        f"{info.num_units:,}" if info.speech else "-",
        f"{info.num_words:,}" if info.num_words else "-",
        f"{info.num_words / seconds:.2f}" if info.num_words and seconds else "-",
    ]
