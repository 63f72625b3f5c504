"""What ZeRO 3 needs before its engine is made."""

from typing import Any

from torch import nn

from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.groups import MegatronGroups
from tolktrain.train.process import importing_less, own_device_as_local_rank, silenced, start_deepspeed


def partition_parameters(module: nn.Module, settings: dict[str, Any], layout: Layout) -> None:
    """Take parameters apart for ZeRO 3, one after the other, each as the first data rank has it.

    `deepspeed.initialize` would do so too, but only after it has moved the whole module to the device.
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
    """Tell ZeRO 3, which gathers a module's own parameters only, that heads use the tables of the embedding."""
    deepspeed = start_deepspeed()
    for head in (model.heads.text, *model.heads.speech):
        deepspeed.zero.register_external_parameter(head, head.weight)
