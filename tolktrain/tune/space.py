"""The settings of a recipe that a machine can run: shipped ones, layouts, and the entries that depend on the layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tolktrain.config import Config
from tolktrain.config.deepspeed import DEFAULT_BUCKET, OVERLAPPED_BUCKET, read_deepspeed_file
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.tune.predict import Predictor
from tolktrain.tune.search import Space
from tolktrain.tune.setting import Setting

SHIPPED = ("zero0", "zero1", "zero2", "zero3", "zero3-offload", "pipeline")  # files in configs/deepspeed
AS_IT_IS = "the configuration"
_BUCKETS = (20_000_000, 50_000_000, 200_000_000, 500_000_000)  # elements
_LIVE = (300_000_000, 1_000_000_000)
_PREFETCH = (50_000_000, 200_000_000)
_PERSISTENT = (100_000, 1_000_000)
_PIPELINE_STAGES = (1, 2, 4, 8, 16)
_LARGEST_MICRO_BATCH = 64


def shipped_files(path: str | Path, overrides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Entries of the shipped files of DeepSpeed that can be found, by name."""
    found = {}
    for name in SHIPPED:
        try:
            config = load_config(path, [*overrides, f"deepspeed.config=configs/deepspeed/{name}.json"])
            found[name] = dict(read_deepspeed_file(config).entries)
        except UserError:
            continue  # tolktrain is installed without its configurations
    return found


def build_space(predictor: Predictor, files: Mapping[str, Mapping[str, Any]], compiles: bool) -> Space:
    """The space of one stage.

    Args:
        predictor: checks settings as training does.
        files: entries of the shipped files, by name.
        compiles: whether torch.compile is tried.

    Raises:
        UserError: training refuses the configuration itself on these ranks.
    """
    own = dict(read_deepspeed_file(predictor.config).entries)
    return Space(
        shipped=_labelled_once(_shipped(predictor, own, files)),
        layouts=list(_layouts(predictor, own, files)),
        micro_batch_sizes=lambda setting: _micro_batch_sizes(predictor, setting),
        alternatives=lambda setting: _alternatives(predictor, setting, compiles),
        may_answer=lambda setting: is_the_same_training(predictor.config, setting),
    )


def _labelled_once(settings: Iterable[Setting]) -> list[Setting]:
    """Equal settings as one, with the labels of all."""
    labels: dict[Setting, list[str]] = {}
    for setting in settings:
        labels.setdefault(setting, []).append(setting.label)
    return [Setting(**{**vars(setting), "label": ", ".join(names)}) for setting, names in labels.items()]


def is_the_same_training(config: Config, setting: Setting) -> bool:
    """Whether a setting rounds as the others do: ZeRO 0 in bf16 accumulates gradients in bf16."""
    return setting.zero_stage > 0 or config.train.precision == "fp32"


def _shipped(predictor: Predictor, own: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Iterable[Setting]:
    """The configuration as it is and, with its micro batch, each shipped file."""
    config = predictor.config
    parallel, train = config.parallel, config.train
    stage = config.deepspeed.zero_stage
    if stage is None:
        is_split = parallel.tensor_parallel_size * parallel.pipeline_parallel_size > 1
        stage = own.get("zero_optimization", {}).get("stage", int(is_split))
    as_it_is = Setting.of_entries(
        own,
        tensor=parallel.tensor_parallel_size,
        pipeline=parallel.pipeline_parallel_size,
        zero_stage=stage,
        micro_batch_size=train.micro_batch_size,
        recompute=train.activation_checkpointing == "layers",
        compile=train.compile == "layers",
        label=AS_IT_IS,
    )
    fitting = _with_fitting_batch(predictor, as_it_is)
    if fitting.micro_batch_size == as_it_is.micro_batch_size:
        predictor.candidate(as_it_is)  # raises what training would
        yield as_it_is
    for name, entries in files.items():
        setting = Setting.of_entries(
            entries,
            tensor=1,
            pipeline=2 if name == "pipeline" else 1,
            zero_stage=entries["zero_optimization"]["stage"],
            micro_batch_size=train.micro_batch_size,
            recompute=as_it_is.recompute,
            compile=as_it_is.compile and entries["zero_optimization"]["stage"] < 3,
            label=f"{name}.json",
        )
        if predictor.cluster.num_gpus % setting.pipeline == 0:
            setting = _with_fitting_batch(predictor, setting)
            if is_valid(predictor, setting):
                yield setting


def _with_fitting_batch(predictor: Predictor, setting: Setting) -> Setting:
    """With the largest micro batch that divides a data rank's share and is not larger than the given one."""
    sizes = [size for size in _micro_batch_sizes(predictor, setting) if size <= setting.micro_batch_size]
    if not sizes or sizes[-1] == setting.micro_batch_size:
        return setting
    changed = setting.but(micro_batch_size=sizes[-1])
    return Setting(**{**vars(changed), "label": setting.label})


def is_valid(predictor: Predictor, setting: Setting) -> bool:
    """Whether training accepts a setting."""
    try:
        predictor.candidate(setting)
    except UserError:
        return False
    return True


def _layouts(predictor: Predictor, own: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Iterable[Setting]:
    """One setting for each layout that training accepts, with a micro batch of 1."""
    cluster, wide = predictor.cluster, predictor.config.train.precision == "fp32"
    own_stage = predictor.config.deepspeed.zero_stage or own.get("zero_optimization", {}).get("stage")
    for tensor in range(1, min(cluster.gpus_per_node, cluster.num_gpus) + 1):
        for pipeline in _PIPELINE_STAGES:
            if cluster.num_gpus % (tensor * pipeline) or cluster.gpus_per_node % tensor:
                continue
            data = cluster.num_gpus // (tensor * pipeline)
            for name in SHIPPED:
                if (pipeline > 1) != (name == "pipeline") or name not in files:
                    continue
                stage = int(files[name]["zero_optimization"]["stage"])
                offloads = name.endswith("offload")
                if stage == 0 and not wide:
                    continue  # rounds differently
                if stage > 1 and data == 1 and not (offloads and cluster.num_gpus == 1):
                    continue  # there is nothing to divide, and a single GPU has only its host to turn to
                entries = own if stage == own_stage and not offloads and pipeline == 1 else files[name]
                layout = Setting.of_entries(
                    entries, tensor=tensor, pipeline=pipeline, zero_stage=stage, micro_batch_size=1
                )
                if is_valid(predictor, layout):
                    yield layout


def _micro_batch_sizes(predictor: Predictor, setting: Setting) -> list[int]:
    """Sizes that divide a data rank's share of the global batch, ascending; [] if it cannot be divided."""
    data = predictor.cluster.num_gpus // (setting.tensor * setting.pipeline)
    batch = predictor.config.train.global_batch_size
    if not data or batch % data:
        return []
    share = batch // data
    return [size for size in range(1, min(share, _LARGEST_MICRO_BATCH) + 1) if share % size == 0]


def _alternatives(predictor: Predictor, setting: Setting, compiles: bool) -> Iterable[tuple[str, Setting]]:
    """Settings that differ in one entry which this layout reads, with its name; the most promising ones first."""
    found = [("compile", setting.but(compile=not setting.compile))] if compiles else []
    found += list(_bucket_alternatives(predictor, setting))
    if setting.zero_stage == 3:
        found += list(_zero3_alternatives(predictor, setting))
    for name, other in found:
        if other != setting and is_valid(predictor, other):
            yield name, other


def reads_buckets(config: Config, setting: Setting) -> bool:
    """Whether the bucket's size and the overlap matter: with pipeline stages in bf16 only, where ours are used."""
    return setting.zero_stage > 0 and (setting.pipeline == 1 or config.train.precision == "bf16")


def _bucket_alternatives(predictor: Predictor, setting: Setting) -> Iterable[tuple[str, Setting]]:
    data = predictor.cluster.num_gpus // (setting.tensor * setting.pipeline)
    if not reads_buckets(predictor.config, setting) or data == 1:
        return
    trained = _trained(predictor) // (setting.tensor * setting.pipeline)
    ours = setting.zero_stage == 1 and predictor.config.train.precision == "bf16" and not setting.offload
    default = OVERLAPPED_BUCKET if ours else DEFAULT_BUCKET
    now = min(int(setting.zero.get("reduce_bucket_size", default)), trained)
    for size in dict.fromkeys(min(size, trained) for size in _buckets(trained)):
        if size != now:  # a bucket is never larger than what is trained
            yield "reduce_bucket_size", setting.with_zero(reduce_bucket_size=size)
    overlaps = bool(setting.zero.get("overlap_comm", ours))
    yield "overlap_comm", setting.with_zero(overlap_comm=not overlaps)
    if setting.zero_stage == 2:
        shares = bool(setting.zero.get("use_multi_rank_bucket_allreduce", True))
        name = "use_multi_rank_bucket_allreduce"
        yield name, setting.with_zero(use_multi_rank_bucket_allreduce=not shares)


def _buckets(trained: int) -> tuple[int, ...]:
    """Sizes that make a difference: of a small model, an eighth and all."""
    return _BUCKETS if trained > 2 * _BUCKETS[0] else (max(1, trained // 8), trained)


def _zero3_alternatives(predictor: Predictor, setting: Setting) -> Iterable[tuple[str, Setting]]:
    elements = sum(layer.parameters for layer in predictor.shape.layers) // setting.tensor
    zero = setting.zero
    for entry, values, default in (
        ("stage3_max_live_parameters", _LIVE, 1_000_000_000),
        ("stage3_prefetch_bucket_size", _PREFETCH, 50_000_000),
        ("stage3_param_persistence_threshold", _PERSISTENT, 100_000),
    ):
        now = min(int(zero.get(entry, default)), elements)
        for value in dict.fromkeys(min(value, elements) for value in values):
            if value != now:
                more = {"stage3_max_reuse_distance": value} if entry == "stage3_max_live_parameters" else {}
                yield entry, setting.with_zero(**{entry: value}, **more)


def _trained(predictor: Predictor) -> int:
    groups = predictor.shape.trainable
    return sum(size for layer in predictor.shape.layers for group, size in layer.sizes.items() if group in groups)
