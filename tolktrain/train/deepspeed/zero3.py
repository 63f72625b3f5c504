"""Preparation of a model for ZeRO 3."""

from typing import Any

from torch import nn

from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.groups import MegatronGroups
from tolktrain.train.process import importing_less, own_device_as_local_rank, silenced, start_deepspeed


def partition_parameters(module: nn.Module, settings: dict[str, Any], layout: Layout) -> None:
    """Partition parameters for ZeRO 3 one by one, with the values of the first data rank.

    `deepspeed.initialize` would do this only after it has moved the whole module to the device.
    """
    deepspeed = start_deepspeed()
    if settings["bf16"]["enabled"]:
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()
    with silenced(), own_device_as_local_rank(), importing_less():
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=layout.data_group,
            config_dict_or_path=settings,
            mpu=MegatronGroups(layout),
        )


def announce_shared_tables(model: SmolTolk) -> None:
    """Register the embedding's tables as parameters of the heads for ZeRO 3, which gathers only a module's own ones."""
    deepspeed = start_deepspeed()
    for head in (model.heads.text, *model.heads.speech):
        deepspeed.zero.register_external_parameter(head, head.weight)
