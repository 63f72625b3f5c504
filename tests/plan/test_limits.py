"""Each limit of docs/scaling.md is met at the number that the check names, and not below."""

from pathlib import Path

import pytest
from corpora import random_records, write_dataset

from tolktrain.cluster.open_files import needed_files_of
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.index import LARGEST_INDEX
from tolktrain.model.architecture import Architecture
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.data_size import SetSize, StageData, data_of_stages, read_sizes
from tolktrain.plan.limits import Limit, data_limits, limits


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(BENCH, ["train.micro_batch_size=1"])


BENCH = Path(__file__).resolve().parents[2] / "configs" / "bench" / "smoltolk-2b.yaml"


def found(config: Config, num_gpus: int, text: str, *data: StageData) -> Limit:
    cluster = Cluster(num_gpus, min(num_gpus, 8))
    fits = num_gpus <= config.train.global_batch_size and config.train.global_batch_size % num_gpus == 0
    best = configured_candidate(config, Architecture.from_config(config.model), cluster) if fits else None
    (limit,) = (limit for limit in limits(config, cluster, best, data) if text in limit.text)
    return limit


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        ("train.global_batch_size 512", 512),
        ("open files", next(count for count in range(8, 1024, 8) if needed_files_of(count + 8) > 1024)),
        ("checkpoint files", 1000),
        ("the watchdog", 4096),
        ("stat calls", 112),  # nodes of 8; 115 GPUs
        ("one file for each rank", 4096),
    ],
)
def test_limits_of_ranks(config: Config, text: str, largest: int) -> None:
    assert not found(config, largest, text).is_met
    assert found(config, largest + 8, text).is_met


def test_node_counts_that_divide_the_canonical_nodes(config: Config) -> None:
    assert not found(config, 64, "num_canonical_nodes").is_met
    assert not found(config, 256, "num_canonical_nodes").is_met
    uneven = config.model_copy(update={"data": config.data.model_copy(update={"num_canonical_nodes": 3})})
    limit = found(uneven, 16, "num_canonical_nodes")
    assert limit.is_met and "use 1, 3 nodes" in limit.text


def test_shared_memory_is_what_training_asks_for(config: Config) -> None:
    """One data rank on each of eight nodes, which reads an eighth of the records."""
    small = config.model_copy(
        update={"data": config.data.model_copy(update={"num_canonical_nodes": 8, "num_workers": 1})}
    )
    candidate = configured_candidate(small, Architecture.from_config(small.model), Cluster(8, 1))

    def limit(records: int) -> Limit:
        stage = StageData("joint", 10**6, records, records, 10, "given")
        (limit,) = (item for item in limits(small, Cluster(8, 1), candidate, [stage]) if "/dev/shm" in item.text)
        return limit

    assert not limit(1_000_000).is_met
    assert limit(8 * (64 << 20) // 4).is_met
    met = int(limit(1_000_000).text.rpartition(" exceed at ")[2].split(" ")[0].replace(",", ""))
    assert not limit(met * 99 // 100).is_met and limit(met * 101 // 100).is_met


def test_sizes_of_data(config: Config) -> None:
    multiple = 512
    few, many = (data_of_stages(config, {}, records)[0] for records in (multiple - 1, 3 * multiple + 5))
    assert few.epoch == multiple and many.epoch == 3 * multiple
    assert many.epochs == pytest.approx(many.sequences / (3 * multiple))
    assert many.sequences * config.train.sequence_length >= config.train.stages[0].tokens
    first = {item.name: data_limits(config, [item])[0] for item in (few,)}
    assert all(limit.is_met and "repeat within an epoch" in limit.text for limit in first.values())
    assert not data_limits(config, [many])[0].is_met
    minute = 60 / 1.6e-7
    for factor, is_met in ((0.99, False), (1.01, True)):
        stage = data_of_stages(config, {}, int(factor * minute))[0]
        assert next(limit for limit in data_limits(config, [stage]) if "CPU" in limit.text).is_met == is_met
    most = LARGEST_INDEX // 752
    for shards, is_met in ((most, False), (most + 1, True)):
        stage = StageData("joint", 10, 10, 10**6, shards, "read")
        assert next(limit for limit in data_limits(config, [stage]) if "shards" in limit.text).is_met == is_met


def test_sets_whose_index_is_here(config: Config) -> None:
    """The counts are those of training's mixture."""
    names = ("libriheavy", "stinystories", "spoken_wikipedia")
    sizes = {name: SetSize(10_000, 3) for name in names}
    adapter, joint = data_of_stages(config, sizes, None)
    # 53 % of an epoch are stinystories: 10,000 / 0.53 sequences, in multiples of 512.
    assert adapter.epoch == 10_000 * 100 // 53 // 512 * 512
    assert adapter.records == 30_000 and adapter.shards == 9 and not adapter.repeated
    assert joint.epoch is None and "fineweb_edu" in joint.unknown and not data_limits(config, [joint])


def test_indexes_are_read(tmp_path: Path, config: Config) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, random_records(48, seed=0, words=60))
    sets = {**config.data.sets, "libriheavy": config.data.sets["libriheavy"].model_copy(update={"path": str(folder)})}
    own = config.model_copy(update={"data": config.data.model_copy(update={"sets": sets})})
    assert read_sizes(own) == {"libriheavy": SetSize(48, len(list(folder.glob("*.mds*"))))}
