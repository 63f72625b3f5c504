"""Float32 masters and Adam moments of an engine's parameters, per parameter.

DeepSpeed keeps them flattened, split and padded; its fragment calls (`deepspeed.utils.safe_get_full_fp32_param` and its
kin), and the fragments behind them, show them per parameter under ZeRO 1 to 3. Without ZeRO they are the optimizer's
own.
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
        self._master_weights = {} if zero_stage else _plain_master_weights(engine)
        if zero_stage in (1, 2):
            _forget_skipped_gradients(engine.optimizer)
        self._create_moments()

    def own_range(self, parameter: nn.Parameter) -> tuple[int, int] | None:
        """Which elements of a trained parameter, flattened, have their master and moments on this data rank.

        None where each data rank has them all.
        """
        if self._zero_stage == 0 or not parameter.requires_grad:
            return None
        if self._zero_stage == 3:
            return _own_part(parameter)
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, 0
        address = mapping.lp_fragment_address
        return address.start, address.start + address.numel

    def held_range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Which elements of a parameter, flattened, the module itself holds here under ZeRO 3."""
        assert self.splits_modules
        return _own_part(parameter)

    def own(self, parameter: nn.Parameter, kind: str | None = None) -> Tensor:
        """This rank's elements of a trained parameter's master, or of the moment `kind`, flat; may be the original."""
        if self._zero_stage == 0:
            return self._plain(parameter, kind).detach().view(-1)
        if self._zero_stage == 3:
            start, stop = _own_part(parameter)
            utils = self._deepspeed.utils
            part: Tensor = (
                utils.safe_get_local_fp32_param(parameter)
                if kind is None
                else utils.safe_get_local_optimizer_state(parameter, kind)
            )
            return part.detach()[: stop - start]
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return torch.empty(0)
        fragment: Tensor = mapping.get_hp_fragment(kind)
        return fragment.detach()

    def write_own(self, parameter: nn.Parameter, value: Tensor, kind: str | None = None) -> None:
        """Set this rank's elements of a trained parameter's master, or of the moment `kind`, to a flat value."""
        value = value.to(parameter.device)
        if self._zero_stage == 3:
            value = _padded(parameter, value)
            if kind is None:
                self._deepspeed.utils.safe_set_local_fp32_param(parameter, value)
            else:
                self._deepspeed.utils.safe_set_local_optimizer_state(parameter, value, kind)
        elif len(value):
            self.own(parameter, kind).copy_(value)

    def held(self, parameter: nn.Parameter) -> Tensor:
        """What the module itself holds of a parameter here, flat; may be the original."""
        if not self.splits_modules:
            return parameter.detach().view(-1)
        start, stop = _own_part(parameter)
        part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return part.detach()[: stop - start]

    def write_held(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set what the module itself holds of a parameter here under ZeRO 3 to a flat value."""
        part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        part.detach().copy_(_padded(parameter, value))

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Shape of a parameter on this tensor rank; ZeRO 3 leaves an empty one."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    @property
    def splits_modules(self) -> bool:
        """Whether modules themselves hold a part of their parameters only."""
        return self._zero_stage == 3

    @property
    def num_updates(self) -> int:
        """Updates that Adam has made in this stage (its bias corrections need them); skipped steps do not count."""
        return int(max(float(state["step"]) for state in self._adam.state.values()))

    @num_updates.setter
    def num_updates(self, value: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(float(value))

    def _plain(self, parameter: nn.Parameter, kind: str | None) -> Tensor:
        master = self._master_weights[parameter]
        return master if kind is None else self._adam.state[master][kind]

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


def _own_part(parameter: nn.Parameter) -> tuple[int, int]:
    """Begin and end of this rank's elements under ZeRO 3. The last part is padded, which this leaves out."""
    zero3: Any = parameter
    size, rank, total = zero3.partition_numel(), dist.get_rank(zero3.ds_process_group), zero3.ds_numel
    return min(rank * size, total), min((rank + 1) * size, total)


def _padded(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A rank's elements under ZeRO 3, as many as DeepSpeed keeps for each rank."""
    return functional.pad(value, (0, parameter.partition_numel() - len(value)))  # type: ignore[attr-defined]


def _plain_master_weights(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Without ZeRO: what AdamW updates, by the module's parameter. The same tensors in fp32, float32 copies in bf16."""
    if engine.optimizer is engine.basic_optimizer:
        parameters = [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
        return {parameter: parameter for parameter in parameters}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)  # named so for bf16 too
    return {own: master for group in pairs for own, master in zip(*group, strict=True)}
