"""The pieces of work, the most valuable first."""

from dataclasses import dataclass

MODELS = ("150m", "400m", "2b")
KERNELS = ("pooling", "adapter", "elementwise", "loss")  # modules of `tolktrain_kernels.bench`


@dataclass(frozen=True)
class Piece:
    """A measurement in a process of its own."""

    name: str  # also of its log
    what: str
    estimate: float  # seconds on an H100 with the start of the process; assumed, since no GPU has run it yet
    limit: float  # seconds after which it is stopped
    essential: bool = False  # time is kept for it until it has run


MACHINE = Piece("machine", "the device, its copy rate, and one product compared with the host's", 20, 60, True)

GPU_PIECES = (
    *(Piece(f"numerics-{name}", f"errors of the {name} kernels against float64", 20, 90, True) for name in KERNELS),
    Piece(
        "model", "the whole model: reference tensors, PyTorch against Triton, no host synchronization", 45, 180, True
    ),
    Piece("pooling", "layer pooling: copy rate and reference implementation", 90, 300),
    Piece("adapter", "input adapter: reference implementation", 75, 300),
    *(
        Piece(f"step-{model}", f"training step of {model}", estimate, 180, True)
        for model, estimate in zip(MODELS, (60, 60, 80), strict=True)
    ),
    Piece("plan", "predictions of `tolktrain plan` against the measured steps", 20, 90),
    *(
        Piece(f"count-{model}", f"bytes, FLOPs and predicted time of the step of {model}, by part", 40, 150)
        for model in MODELS
    ),
    Piece("attention", "attention of backbone and segments: flash, cuDNN and others", 40, 150),
    Piece("products", "products of matrices; with the rates above, a calibration for `tolktrain plan`", 30, 90),
    *(Piece(f"accumulated-{model}", f"training step of {model} with 8 micro batches", 75, 240) for model in MODELS),
    Piece("elementwise", "norm, gated activation and rotation", 75, 300),
    Piece("loss", "cross-entropy", 60, 240),
    Piece("kernel-tests", "all kernels in all shapes against float64", 150, 600),
    *(
        Piece(
            f"against-{model}", f"training step of {model} against the reference and the strongest plain form", 180, 600
        )
        for model in MODELS
    ),
    Piece("tune", "settings of the pooling kernels for this GPU", 300, 3600),
)

CPU_PIECES = (
    Piece("kernels", "kernels: interpreter, compilation for GPUs, and times on the CPU", 600, 1800, True),
    Piece("step-cpu", "training step of configs/bench/cpu.yaml against the reference implementation", 300, 900, True),
)
