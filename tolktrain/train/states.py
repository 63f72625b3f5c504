"""Float32 masters and Adam moments of an engine's parameters, taken and given whole.

DeepSpeed keeps them flattened, split and padded; its fragment calls (`deepspeed.utils.safe_get_full_fp32_param` and its
kin) show them per parameter under ZeRO 1 to 3. Without ZeRO they are the optimizer's own.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.train.process import start_deepspeed

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"


class OptimizerStates:
    """Masters and moments of `engine`, whose optimizer is torch's AdamW. Calls are collective over the data group."""

    def __init__(self, engine: Any, zero_stage: int) -> None:
        self._deepspeed = start_deepspeed()
        self._engine = engine
        self._zero_stage = zero_stage
        self._adam: torch.optim.Optimizer = engine.basic_optimizer
        self._masters = {} if zero_stage else _plain_masters(engine)
        if zero_stage in (1, 2):
            _forget_skipped_gradients(engine.optimizer)
        self._create_moments()

    def read(self, parameter: nn.Parameter) -> Tensor:
        """The float32 value of a parameter, trained or frozen, in its full shape."""
        if not parameter.requires_grad:
            with self._whole(parameter):
                return parameter.detach().float().clone()
        if self._zero_stage:
            value: Tensor = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
            assert value is not None
            return value.detach()
        return self._masters[parameter].detach().clone()

    def write(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a parameter and, if it is trained, its master."""
        value = value.to(parameter.device)
        if parameter.requires_grad and self._zero_stage == 3:
            self._deepspeed.utils.safe_set_local_fp32_param(parameter, _own_part(parameter, value))
        elif parameter.requires_grad and self._zero_stage:
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        elif parameter.requires_grad:
            self._masters[parameter].data.copy_(value)
        # The module has its own copy, renewed by DeepSpeed at its next step: the next forward would read the old one.
        with self._whole(parameter):
            parameter.data.copy_(value)

    def read_moment(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """A moment of a trained parameter, in its full shape."""
        if self._zero_stage:
            value: Tensor = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
            assert value is not None
            return value.detach()
        moment: Tensor = self._adam.state[self._masters[parameter]][kind]
        return moment.clone()

    def write_moment(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Set a moment of a trained parameter."""
        value = value.to(parameter.device)
        if self._zero_stage == 3:
            self._deepspeed.utils.safe_set_local_optimizer_state(parameter, _own_part(parameter, value), kind)
        elif self._zero_stage:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, kind)
        else:
            self._adam.state[self._masters[parameter]][kind].copy_(value)

    @property
    def num_updates(self) -> int:
        """Updates that Adam has made in this stage (its bias corrections need them); skipped steps do not count."""
        return int(max(float(state["step"]) for state in self._adam.state.values()))

    @num_updates.setter
    def num_updates(self, value: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(float(value))

    def _create_moments(self) -> None:
        # torch creates them at the first update, so a fresh engine would have nothing to restore into. Those of
        # DeepSpeed's bf16 optimizer without ZeRO exist, but count an update that was never made, which spoils the
        # bias corrections of the first steps.
        self._adam.state.clear()
        for master in self._adam_parameters():
            self._adam.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                FIRST_MOMENT: torch.zeros_like(master),
                SECOND_MOMENT: torch.zeros_like(master),
            }
        link = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:  # ZeRO 1 and 2 would link their fragments to the moments at the first update
            link()

    def _adam_parameters(self) -> list[Tensor]:
        if self._zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    def _whole(self, parameter: nn.Parameter) -> Any:
        """A context in which the module's parameter is not partitioned, and changes to it reach all ranks."""
        return self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._zero_stage == 3)


def _forget_skipped_gradients(optimizer: Any) -> None:
    """Make ZeRO 1 and 2 with offload drop added-up gradients whenever they clear their buffers on the host.

    In bf16 training, DeepSpeed keeps the gradients of a step that it skips, adds the next ones to them, and so skips
    every later step too.
    """
    clear = getattr(optimizer, "reset_cpu_buffers", None)
    if clear is not None:

        def clear_all() -> None:
            clear()
            optimizer.averaged_gradients.clear()

        optimizer.reset_cpu_buffers = clear_all


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a value under ZeRO 3. DeepSpeed's calls for whole values forget that the last is padded."""
    zero3: Any = parameter
    size, rank = zero3.partition_numel(), dist.get_rank(zero3.ds_process_group)
    part = value.flatten()[rank * size : (rank + 1) * size]
    return functional.pad(part, (0, size - len(part)))


def _plain_masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Without ZeRO: what AdamW updates, by the module's parameter. The same tensors in fp32, float32 copies in bf16."""
    if engine.optimizer is engine.basic_optimizer:
        parameters = [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
        return {parameter: parameter for parameter in parameters}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)  # named so for bf16 too
    return {own: master for group in pairs for own, master in zip(*group, strict=True)}
