"""The same training under many layouts: what is run, in one process and in several."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import small_runs  # noqa: F401  # finds `corpora`
from corpora import NUM_UNITS, TEXT_VOCAB_SIZE
from packing import cut_into_documents, random_starts
from small_runs import preference_overrides, shorten, small_config
from torch import Tensor

from tolktrain.checkpoint.slices import Slice
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.data.batch import Batch
from tolktrain.data.loader import StageLoader, validation_batches
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.batch_consistency import consistent_batches
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import LearningRates
from tolktrain.train.reference import ReferencePass
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.stages import StagePlan
from tolktrain.vocabulary import Vocabulary

ZERO_3 = {
    "stage": 3,
    "stage3_param_persistence_threshold": 100,
    "stage3_prefetch_bucket_size": 2000,
    "stage3_max_live_parameters": 10_000,
    "stage3_max_reuse_distance": 2000,
}
RATES = LearningRates(backbone=0.002, speech=0.004, lora=0.003)

# Of the model and the recipe; each is trained in one process too.
FOUR_LAYERS = "model.backbone.num_layers=4"
VARIANTS: dict[str, tuple[str, ...]] = {
    "both": (FOUR_LAYERS,),
    "static": (FOUR_LAYERS, "model.speech.layer_pooling=static"),
    "dynamic": (FOUR_LAYERS, "model.speech.layer_pooling=dynamic", "model.speech.residual=false"),
    "early-fusion": (
        FOUR_LAYERS,
        "model.speech.layer_pooling=none",
        "model.speech.input_adapter_layers=0",
        "model.speech.output_adapter_layers=0",
        "model.speech.residual=false",
    ),
    "codebooks": (FOUR_LAYERS, "model.speech.num_codebooks=2", "model.speech.input_adapter_layers=2"),
    "untied": (FOUR_LAYERS, "model.backbone.tie_text_embeddings=false"),
    "packed": (FOUR_LAYERS,),  # several documents in a sequence
    "lora": (
        FOUR_LAYERS,
        "model.lora.rank=3",
        "train.stages.2.trainable=[lora, pooling, speech]",
        "train.optimizer.lora_weight_decay=0.05",
    ),
    "preference": (FOUR_LAYERS, "train.stages.2.preference={beta: 1.5, length_normalized: true}"),
    "preference-codebooks": (
        FOUR_LAYERS,
        "train.sequence_length=64",
        "model.speech.num_codebooks=2",
        "train.stages.2.preference={beta: 1.5}",
    ),
    "preference-lora": (
        FOUR_LAYERS,
        "model.lora.rank=3",
        "train.stages.2.trainable=[lora]",
        "train.stages.2.preference={beta: 1.5, reference: lora_base}",
    ),
    "odd": ("model.backbone.num_layers=3",),  # the pooling's vectors cannot be shared out evenly
    "three-groups": (
        "model.backbone.hidden_size=48",
        "model.backbone.num_attention_heads=6",
        "model.backbone.num_key_value_heads=3",
    ),
}


@dataclass(frozen=True)
class Case:
    """A layout of a variant's training."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False
    zero_stage: int = 1
    micro_batch_size: int = 2
    variant: str = "both"
    stage: int = 2  # of small_runs.write_config: 1 trains adapters on a frozen backbone, 2 everything
    precision: str = "fp32"
    overrides: tuple[str, ...] = ()
    without: str = ""  # a cure of layout_traps.py that is taken away
    steps: int = 0  # instead of the usual number

    @property
    def num_processes(self) -> int:
        """Ranks that it takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def num_steps(self) -> int:
        """Steps that it is trained for: two before the validation and two after it, of which the second repeats what
        the first may have recorded. In bf16 more, from which to estimate how far rounding alone leads."""
        return self.steps or (4 if self.precision == "fp32" else 7)

    @property
    def validated_step(self) -> int:
        """The step, counted from 0, after which the pipeline sees batches of another shape; steps follow it."""
        return self.num_steps - 3  # none of a single step

    @property
    def reference(self) -> "Case":
        """The same training in one process."""
        return Case(variant=self.variant, stage=self.stage, precision=self.precision, zero_stage=1, micro_batch_size=8)

    @property
    def name(self) -> str:
        """For test ids and files: "tp2-sp-pp2-dp1-zero1-both-stage2-micro2"."""
        sizes = f"tp{self.tensor}{'-sp' * self.sequence_parallel}-pp{self.pipeline}-dp{self.data}-zero{self.zero_stage}"
        more = "".join(f"-{override.split('=')[0].split('.')[-1]}" for override in self.overrides)
        more += f"-without-{self.without}" if self.without else ""
        return f"{sizes}-{self.variant}-stage{self.stage}-micro{self.micro_batch_size}-{self.precision}{more}"

    def config(self, folder: Path, sets: Path) -> Config:
        """Its configuration."""
        return small_config(
            folder,
            sets,
            f"parallel.tensor_parallel_size={self.tensor}",
            f"parallel.pipeline_parallel_size={self.pipeline}",
            f"parallel.sequence_parallel={str(self.sequence_parallel).lower()}",
            f"deepspeed.zero_stage={self.zero_stage}",
            f"train.micro_batch_size={self.micro_batch_size}",
            f"train.precision={self.precision}",
            # Where a gradient is next to nothing, Adam would otherwise turn its rounding into an update of full size.
            "train.optimizer.eps=1e-5",
            "train.optimizer.clip_grad_norm=0.5",
            *self._preferences(sets),
            *VARIANTS[self.variant],
            *([f"data.sets.train.path={sets / 'codebooks'}"] if self.variant == "codebooks" else []),
            *([f"deepspeed.config={_released_parameters(folder)}"] if self.zero_stage == 3 else []),
            *self.overrides,
        )

    @property
    def has_preferences(self) -> bool:
        """Whether the loss is that of preferences."""
        return self.variant.startswith("preference")

    def _preferences(self, sets: Path) -> list[str]:
        name = "preferences-codebooks" if self.variant == "preference-codebooks" else "preferences"
        return preference_overrides(sets, 2, name) if self.has_preferences else []


def _released_parameters(folder: Path) -> Path:
    """Settings of ZeRO 3 under which this small model's parameters are gathered and released, and its vectors kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"zero3-{os.getpid()}.json"
    path.write_text(json.dumps({"zero_optimization": ZERO_3}))
    return path


Slices = dict[str, Slice]


@dataclass
class Outcome:
    """What a training did, as far as this rank knows."""

    data_rank: int
    batches: list[list[list[Any]]]  # of each step: rows of this rank's share of the global batch
    losses: list[float]
    grad_norms: list[float]
    validation: list[float]
    gradients: Slices  # of the first step, reduced and clipped, by canonical name
    parameters: Slices  # after the last step
    tied: dict[int, list[Tensor]]  # tables that the ends of a pipeline share, by this rank's stage


def run(case: Case, folder: Path, sets: Path) -> Outcome:
    """Train under a layout; collective."""
    config = case.config(folder, sets)
    parallel = config.parallel
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    model_builder = ModelBuilder.of(config)
    stage = config.train.stages[case.stage]
    settings = ResolvedSettings.of(config, model_builder.architecture, layout)
    engine = model_builder.start(model_builder.build(layout, None, settings), stage, layout, settings)
    outcome = Outcome(layout.data_rank, [], [], [], [], {}, {}, {})
    tokens = config.model.special_tokens
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS, config.model.speech.num_codebooks, tokens)
    ranks = {"data_rank": layout.data_rank, "data_size": layout.data_size}
    singles: list[Batch] = []
    if case.has_preferences:
        options = {"vocabulary": vocabulary, "sequence_length": config.train.sequence_length, "micro_batch_size": 1}
        dataset, spans = config.data.sets["preferences"], config.data.interleaving
        singles = list(validation_batches(dataset, "preference", 3, interleaving=spans, **options, **ranks))

    def open_steps(step: int) -> StageLoader:
        return StageLoader(config, stage.mixture, vocabulary, seed=order_seed(layout), step=step, **ranks)

    if case.has_preferences and stage.preference.reference == "initial":
        plan = StagePlan(2, stage, 0, case.num_steps, case.num_steps)
        own = folder / case.name
        own.mkdir(exist_ok=True)
        known = (own, plan, engine, layout, "of the model", False)
        engine.reference = ReferencePass(*known, Progress(), lambda: False, 8).run(case.num_steps, open_steps, singles)
    with open_steps(0) as loader:
        agreed = consistent_batches(loader, layout, 0, every_step=True)
        for step in range(case.num_steps):
            batches = next(agreed)
            if case.variant == "packed":
                batches = [cut_into_documents(batch, random_starts(batch, step)) for batch in batches]
                assert any(batch.documents for batch in batches)
            outcome.batches.append(rows(batches))
            result = engine.train_step(batches, RATES)
            assert not result.skipped
            outcome.losses.append(result.loss(config.model.speech.entropy_weight))
            outcome.grad_norms.append(result.grad_norm)
            if step == 0:
                first_decay, _ = config.train.optimizer.betas
                moments = engine.snapshot().first_moments
                outcome.gradients = {
                    name: replace(moment, tensor=moment.tensor / (1 - first_decay)) for name, moment in moments.items()
                }
            if step == case.validated_step:
                outcome.validation = validate(engine, batches, singles)
    outcome.parameters = engine.snapshot().parameters
    if engine.model.tied_tables:
        outcome.tied[layout.pipeline_rank] = [table.detach().clone() for table in engine.model.tied_tables]
    engine.close()
    return outcome


def order_seed(layout: Layout) -> int:
    """Of the order of samples: the same on all ranks."""
    return 3


def rows(batches: list[Batch]) -> list[list[Any]]:
    """Each sequence of the micro batches, as what can be compared."""
    return [
        [record, strategy, tokens.flatten().tolist()]
        for batch in batches
        for record, strategy, tokens in zip(batch.record_ids, batch.strategies, batch.tokens, strict=True)
    ]


def validate(engine: Engine, batches: list[Batch], singles: list[Batch]) -> list[float]:
    """Losses on this step's sequences, one by one and each cut to half its length: another shape than in training.
    Of preferences, which cannot be cut, losses of other sequences, one by one."""
    if not singles:
        singles = [single for batch in batches for single in shorten(batch)]
    engine.model.eval()
    result = engine.loss_sums(singles)
    engine.model.train()
    if result.preference is not None:
        return [result.preference.loss, result.preference.margin, result.text_nll, result.speech_nll]
    return [result.text_nll, result.speech_nll, result.entropy]
