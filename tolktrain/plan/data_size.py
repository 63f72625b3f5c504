"""The data of a recipe: how many records its sets have, and how often the token budget repeats them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tolktrain.config import Config
from tolktrain.config.training import StageConfig
from tolktrain.data.index import INDEX_FILE, read_index
from tolktrain.data.mixture import MixturePlan, epoch_multiple


@dataclass(frozen=True)
class SetSize:
    """A data set whose index is on this machine."""

    records: int
    shards: int


@dataclass(frozen=True)
class StageData:
    """The data of a stage of the recipe. A record makes one sequence."""

    name: str
    sequences: int  # that the token budget takes
    epoch: int | None  # sequences of an epoch; None if it is not known
    records: int | None  # of all sets of the stage
    shards: int | None
    source: str  # where the number of records comes from
    repeated: tuple[str, ...] = ()  # sets with fewer records than a single epoch takes
    unknown: tuple[str, ...] = ()  # sets whose index is not here

    @property
    def epochs(self) -> float | None:
        """How often the stage reads its data."""
        return None if self.epoch is None else self.sequences / self.epoch


def read_sizes(config: Config) -> dict[str, SetSize]:
    """Sizes of the sets of the recipe whose index.json is in their folder; nothing is fetched.

    Raises:
        UserError: an index is damaged.
    """
    names = {name for stage in config.train.stages for name in MixturePlan.from_config(stage.mixture).names}
    here = {name: config.data.sets[name].path for name in sorted(names)}
    found = {}
    for name, folder in here.items():
        if Path(folder, INDEX_FILE).is_file():
            index = read_index(folder)
            found[name] = SetSize(index.num_records, len(index))
    return found


def data_of_stages(config: Config, sizes: Mapping[str, SetSize], records: int | None) -> tuple[StageData, ...]:
    """The data of each stage.

    Args:
        config: recipe and sets.
        sizes: of the sets whose index is here.
        records: of the sets of a stage together, in place of their indexes; None if not given.
    """
    return tuple(_of_stage(config, stage, sizes, records) for stage in config.train.stages)


def _of_stage(config: Config, stage: StageConfig, sizes: Mapping[str, SetSize], records: int | None) -> StageData:
    train, plan = config.train, MixturePlan.from_config(stage.mixture)
    sequences = math.ceil(stage.tokens / train.sequence_length / train.global_batch_size) * train.global_batch_size
    multiple = epoch_multiple(train.global_batch_size, config.data.num_canonical_nodes)
    if records is not None:
        epoch = max(records // multiple, 1) * multiple
        short = ("all sets together",) if records < multiple else ()
        return StageData(stage.name, sequences, epoch, records, None, "given on the command line", short)
    unknown = tuple(name for name in plan.names if name not in sizes)
    if unknown:
        return StageData(stage.name, sequences, None, None, None, "unknown", (), unknown)
    held = [sizes[name].records for name in plan.names]
    counts = plan.counts(held, multiple)
    repeated = tuple(name for name, size, count in zip(plan.names, held, counts, strict=True) if count > size)
    shards = sum(sizes[name].shards for name in plan.names)
    return StageData(stage.name, sequences, sum(counts), sum(held), shards, "read from index.json", repeated)
