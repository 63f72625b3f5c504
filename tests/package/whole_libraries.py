"""Imports our ways into the libraries, then uses the parts that they keep out."""

import sys
import warnings

import torch

from tolktrain.train.process import import_deepspeed

import_deepspeed()
kept_out = ["transformers", "tensorboard", "torch.distributed.tensor", "torch.utils.tensorboard", "streaming.text"]
assert not [name for name in kept_out if name in sys.modules]

import streaming  # noqa: E402
from streaming.base.dataloader import BatchEncoding, BatchFeature, StreamingDataLoader  # noqa: E402

# By the names that the library itself has imported.
encoding = BatchEncoding({"a": torch.zeros(3)})
loader = StreamingDataLoader([0])
assert "transformers" in sys.modules
assert loader._get_batch_size(encoding) == 3
assert loader._get_batch_size(torch.zeros(5)) == 5

import transformers  # noqa: E402

assert type(encoding) is transformers.BatchEncoding
assert isinstance(transformers.BatchFeature({}), BatchFeature)
assert not isinstance(transformers.BatchFeature({}), BatchEncoding)
assert issubclass(streaming.text.StreamingC4, streaming.StreamingDataset)
assert streaming.text is sys.modules["streaming.text"]
assert issubclass(streaming.vision.StreamingCIFAR10, streaming.StreamingDataset)
assert issubclass(streaming.multimodal.StreamingInsideWebVid, streaming.StreamingDataset)
import torchvision  # noqa: E402

assert issubclass(streaming.vision.base.StreamingVisionDataset, torchvision.datasets.VisionDataset)

# megatron-core's parts, and those of torch that it imports.
warnings.simplefilter("ignore")
import megatron.core  # noqa: E402
from megatron.core.distributed import DistributedDataParallel  # noqa: E402
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from megatron.core.timers import Timers  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

assert issubclass(DistributedDataParallel, torch.nn.Module)
assert OptimizerConfig(lr=0.5).lr == 0.5
assert Timers(0, "max") is not None
assert isinstance(DTensor, type) and megatron.core.utils.DTensor.__name__ == "DTensor"
assert not isinstance(torch.zeros(1), megatron.core.utils.DTensor)

with SummaryWriter("events") as writer:
    writer.add_scalar("loss", 1.5, 3)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

events = EventAccumulator("events")
events.Reload()
assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]
