"""The identity of a run's data, independent of where it is stored."""

from collections.abc import Mapping
from dataclasses import dataclass

from tolktrain.config import Config
from tolktrain.data.index import read_index
from tolktrain.parallel.collectives import on_each_node


@dataclass(frozen=True)
class DataIdentity:
    """What the sequences of training depend on, in addition to the configuration. Stored in checkpoints."""

    sets: Mapping[str, str]  # of each set that a stage uses: `ShardIndex.content_sha256`
    text_eos: int  # the id that ends utterances of text, and fills short sequences

    @classmethod
    def of(cls, config: Config, text_eos: int) -> "DataIdentity":
        """The identity of the data of all stages; collective. The sets were checked by `check_data`."""
        names = {name for stage in config.train.stages for entry in stage.mixture.values() for name in entry.sets}
        paths = {name: config.data.sets[name].path for name in sorted(names)}
        return cls(
            on_each_node(lambda: {name: read_index(path).content_sha256() for name, path in paths.items()}), text_eos
        )
