"""Reading the reference files."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

REFERENCE = Path(__file__).parents[1] / "reference"
FILES = ("mixed", "speech", "text", "mixed_early_fusion", "mixed_static_pool")
LOSSES = ("loss", "speech_nll_sum", "text_nll_sum", "entropy")


def read(name: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Tensors by kind (input, weight, output, grad) and the metadata."""
    kinds: dict[str, dict[str, Tensor]] = {"input": {}, "weight": {}, "output": {}, "grad": {}}
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            kind, rest = key.split(".", 1)
            kinds[kind][rest] = file.get_tensor(key)
        return kinds, file.metadata()
