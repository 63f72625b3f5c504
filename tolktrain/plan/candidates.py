"""All layouts of a number of GPUs, each accepted by the checks of training or refused with their message."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile, DeepSpeedSettings, read_deepspeed_file, resolve_deepspeed
from tolktrain.config.root import compile_mistakes
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import PipelineCut, cut_layers
from tolktrain.model.divisibility import check_tensor_parallel

ZERO_STAGES = (1, 2, 3)  # ZeRO 0 adds up gradients in bf16, and needs more memory than ZeRO 1 with several GPUs
PIPELINE = 0  # the key of the file for pipeline stages
_LARGEST_MICRO_BATCH = 64


@dataclass(frozen=True)
class Cluster:
    """GPUs of a job."""

    num_gpus: int
    gpus_per_node: int

    @property
    def num_nodes(self) -> int:
        """Nodes that hold them."""
        return -(-self.num_gpus // self.gpus_per_node)


@dataclass(frozen=True)
class Candidate:
    """One layout with its settings."""

    cluster: Cluster
    tensor: int
    pipeline: int
    zero_stage: int
    micro_batch_size: int
    recompute: bool
    offload: bool
    file: str | None  # DeepSpeed's JSON
    settings: DeepSpeedSettings
    cut: PipelineCut | None  # None without a pipeline

    @property
    def data(self) -> int:
        """Data ranks."""
        return self.cluster.num_gpus // (self.tensor * self.pipeline)

    @property
    def accumulation(self) -> int:
        """Micro batches of a step on each data rank."""
        return self.settings.accumulation_steps

    @property
    def sequence_parallel(self) -> bool:
        """Always with tensor ranks: it divides memory, and costs a quarter more of their traffic."""
        return self.tensor > 1

    @property
    def name(self) -> str:
        """Short: "t 2, p 1, d 4, ZeRO 1, micro batch 8, recomputed"."""
        sizes = f"t {self.tensor}, p {self.pipeline}, d {self.data}, ZeRO {self.zero_stage}"
        extras = f"{', recomputed' if self.recompute else ''}{', offload' if self.offload else ''}"
        return f"{sizes}, micro batch {self.micro_batch_size}{extras}"

    @property
    def overrides(self) -> dict[str, str]:
        """Configuration entries of the layout, by dotted key."""
        return {
            "parallel.tensor_parallel_size": str(self.tensor),
            "parallel.pipeline_parallel_size": str(self.pipeline),
            "parallel.sequence_parallel": str(self.sequence_parallel).lower(),
            **({} if self.file is None else {"deepspeed.config": self.file}),
            "deepspeed.zero_stage": str(self.zero_stage),
            "train.micro_batch_size": str(self.micro_batch_size),
            "train.activation_checkpointing": "layers" if self.recompute else "none",
        }


@dataclass(frozen=True)
class Refusal:
    """Layouts that training would refuse at the start."""

    what: str
    reason: str


def candidates(
    config: Config,
    architecture: Architecture,
    cluster: Cluster,
    files: Mapping[int, DeepSpeedFile],
    zero_stages: Collection[int] = ZERO_STAGES,
) -> tuple[list[Candidate], list[Refusal]]:
    """All layouts that training accepts, and the others with the message of training.

    Args:
        config: whose recipe stays: global batch, sequence length, precision and data.
        architecture: of its model.
        cluster: GPUs.
        files: entries of DeepSpeed's JSON for each ZeRO stage, and for `PIPELINE`.
        zero_stages: stages that are tried.
    """
    found: list[Candidate] = []
    refused: dict[str, Refusal] = {}
    for tensor, pipeline in _sizes(architecture, cluster):
        what = f"t {tensor}, p {pipeline}"
        try:
            parallel = config.parallel.model_copy(
                update={
                    "tensor_parallel_size": tensor,
                    "pipeline_parallel_size": pipeline,
                    "sequence_parallel": tensor > 1,
                }
            )
            check_tensor_parallel(architecture, parallel, config.train.sequence_length)
            for mistake in compile_mistakes(config.train, parallel):
                raise UserError(mistake)
            cut = cut_layers(architecture, config.train.sequence_length, pipeline) if pipeline > 1 else None
        except UserError as error:
            refused.setdefault(str(error), Refusal(what, str(error)))
            continue
        own = config.model_copy(update={"parallel": parallel})
        for zero_stage in zero_stages:
            if pipeline > 1 and zero_stage != 1:
                continue
            try:
                found += _of_batches(own, cluster, files[PIPELINE if pipeline > 1 else zero_stage], zero_stage, cut)
            except UserError as error:
                refused.setdefault(str(error), Refusal(f"{what}, ZeRO {zero_stage}", str(error)))
    return found, list(refused.values())


def configured_candidate(config: Config, architecture: Architecture, cluster: Cluster) -> Candidate:
    """The layout that a configuration has itself.

    Raises UserError as training would.
    """
    parallel, length = config.parallel, config.train.sequence_length
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    check_tensor_parallel(architecture, parallel, length)
    cut = cut_layers(architecture, length, pipeline) if pipeline > 1 else None
    file = read_deepspeed_file(config)
    settings = resolve_deepspeed(config, file, cluster.num_gpus // (tensor * pipeline))
    return Candidate(
        cluster,
        tensor,
        pipeline,
        settings.zero_stage,
        config.train.micro_batch_size,
        config.train.activation_checkpointing == "layers",
        _offloads(settings),
        file.path,
        settings,
        cut,
    )


def _offloads(settings: DeepSpeedSettings) -> bool:
    return (settings.entries["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") != "none"


def _sizes(architecture: Architecture, cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Tensor and pipeline sizes; tensor ranks stay inside a node, pipeline stages are cut as evenly as may be."""
    for tensor in range(1, min(cluster.gpus_per_node, cluster.num_gpus) + 1):
        if cluster.num_gpus % tensor or cluster.gpus_per_node % tensor:
            continue
        for pipeline in (1, 2, 4, 8, 16):
            if (cluster.num_gpus // tensor) % pipeline == 0 and pipeline <= architecture.num_layers:
                yield tensor, pipeline


def _of_batches(
    config: Config, cluster: Cluster, file: DeepSpeedFile, zero_stage: int, cut: PipelineCut | None
) -> list[Candidate]:
    parallel = config.parallel
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    data = cluster.num_gpus // (tensor * pipeline)
    share = config.train.global_batch_size // data
    sizes = [size for size in range(1, min(share, _LARGEST_MICRO_BATCH) + 1) if share % size == 0] or [1]
    deepspeed = config.deepspeed.model_copy(update={"zero_stage": zero_stage})
    found = []
    for micro in sizes:
        train = config.train.model_copy(update={"micro_batch_size": micro})
        own = config.model_copy(update={"train": train, "deepspeed": deepspeed})
        settings = resolve_deepspeed(own, file, data)
        for recompute in (False, True):
            found.append(
                Candidate(
                    cluster,
                    tensor,
                    pipeline,
                    zero_stage,
                    micro,
                    recompute,
                    _offloads(settings),
                    file.path,
                    settings,
                    cut,
                )
            )
    return found
