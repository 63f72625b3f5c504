"""The line of metrics.jsonl that describes a step."""

import resource

import torch

from tolktrain.model.loss import PreferenceResult, StepResult
from tolktrain.runs.metrics import Line
from tolktrain.train.optimizer import LearningRates


def step_line(
    step: int,
    stage: str,
    tokens_per_step: int,
    seconds: float,
    learning_rates: LearningRates,
    result: StepResult,
    entropy_weight: float,
    mfu: float | None,
) -> Line:
    """The metrics of one step. Losses in nats per scored position; tokens are positions, summed over the run."""
    compared = {} if result.preference is None else preference_figures(result.preference)
    return {
        "step": step,
        "stage": stage,
        "tokens": step * tokens_per_step,
        "loss": result.loss(entropy_weight),
        "text_loss": result.text_loss,
        "speech_loss": result.speech_loss,
        **{f"preference_{name}": value for name, value in compared.items()},
        "layer_entropy": result.layer_entropy,
        "grad_norm": result.grad_norm,
        "learning_rate": learning_rates.backbone,
        "speech_learning_rate": learning_rates.speech,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens_per_step / seconds,
        "mfu": mfu,
        "memory_gib": memory_gib(),
        "memory_reserved_gib": memory_reserved_gib(),
        "skipped": int(result.skipped),
    }


def preference_figures(result: PreferenceResult) -> Line:
    """Figures of preferences by their names; rewards in nats."""
    return {
        "accuracy": result.accuracy,
        "margin": result.margin,
        "chosen_reward": result.chosen_reward,
        "rejected_reward": result.rejected_reward,
    }


def memory_gib() -> float:
    """Peak memory of this rank so far: of its GPU, or of the process without a GPU. In GiB."""
    if torch.cuda.is_initialized():  # `is_available` loads a library each time where there is no GPU
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # given in KiB


def memory_reserved_gib() -> float | None:
    """Most memory of this rank's GPU that torch's allocator has held so far, used or not, in GiB; None without a GPU.

    This, and not what was allocated, must fit into the GPU, together with the CUDA context and NCCL's buffers.
    """
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_initialized() else None
