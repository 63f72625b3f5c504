"""GPUs for the processes of a preparation."""

import os
from collections.abc import MutableMapping

from tolktrain.config.prepare import RecordingsConfig
from tolktrain.units.load import kind_of

VISIBLE = "CUDA_VISIBLE_DEVICES"


def uses_models(config: RecordingsConfig) -> bool:
    """Whether units or word times come from a neural network. Raises `UserError` if the tokenizer is missing."""
    return config.alignment.method == "ctc" or kind_of(config.speech_tokenizer.path).is_neural


def num_gpus() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def share_gpus(number: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Leave process `number` one of the GPUs. To be called before it has used any."""
    if VISIBLE in environ:
        visible = [name.strip() for name in environ[VISIBLE].split(",") if name.strip()]
    else:
        visible = [str(device) for device in range(num_gpus())]
    if visible:
        environ[VISIBLE] = visible[number % len(visible)]
