"""What the search for NaN and infinity adds to loading a backbone: CPU seconds of one thread, with and without it.

    python docs/measure/backbone_loading.py [LAYERS]

Writes a backbone of random bf16 weights with the sizes of SmolLM-135M (30 layers unless given) into a temporary folder.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "interop"))  # for `small_backbone`

from small_backbone import SINGLE, tensors, write_config, write_files

from tolktrain.config.model import ModelConfig
from tolktrain.interop import safetensors_folder
from tolktrain.interop.huggingface import load_backbone_into
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk

SIZES = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}
ROUNDS = 4  # of which the first one fills the caches


def main() -> None:
    """Print both times of each round."""
    torch.set_num_threads(1)
    sizes = {**SIZES, "num_hidden_layers": int(sys.argv[1]) if sys.argv[1:] else 30}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_config(folder, **sizes)
        weights = {name: tensor.bfloat16() for name, tensor in tensors(**sizes).items()}
        print(f"{sum(tensor.numel() for tensor in weights.values()) / 1e6:.0f} M parameters", flush=True)
        write_files(folder, {SINGLE: weights})
        model = SmolTolk(Architecture.from_config(ModelConfig(backbone=place)), seed=None)
        search: Callable[[torch.Tensor], str | None] = safetensors_folder.non_finite
        for _ in range(ROUNDS):
            times = []
            for check in (search, lambda _: None):
                safetensors_folder.non_finite = check
                started = time.process_time()
                load_backbone_into(model, place)
                times.append(time.process_time() - started)
            print(f"with {times[0]:.3f} s, without {times[1]:.3f} s", flush=True)


if __name__ == "__main__":
    main()
