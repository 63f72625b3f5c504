"""Float32 master weights and Adam moments of an engine's parameters, per parameter.

DeepSpeed keeps them flat, partitioned and padded. Under ZeRO 1 to 3, the fragments behind functions such as
`deepspeed.utils.safe_get_full_fp32_param` give access per parameter. Without ZeRO, they are tensors of the optimizer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tolktrain.train.deepspeed.compat import (
    adam,
    adam_parameters,
    forget_skipped_gradients,
    fragment,
    fragment_range,
    link_moments,
    local_shape,
    padded_partition,
    partition,
    partition_range,
    unsharded_master_weights,
)
from tolktrain.train.process import start_deepspeed

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"


class OptimizerStates:
    """Master weights and moments of `engine`, with torch's AdamW. Calls are collective over the data group."""

    def __init__(self, engine: Any, zero_stage: int) -> None:
        self._deepspeed = start_deepspeed()
        self._engine = engine
        self._zero_stage = zero_stage
        self._adam: torch.optim.Optimizer = adam(engine)
        self._master_weights = {} if zero_stage else unsharded_master_weights(engine)
        if zero_stage in (1, 2):
            forget_skipped_gradients(engine)
        self._create_moments()

    def own_range(self, parameter: nn.Parameter) -> tuple[int, int] | None:
        """The elements of a flattened trained parameter whose master weights and moments are on this data rank.

        None if each data rank has all elements.
        """
        if self._zero_stage == 0 or not parameter.requires_grad:
            return None
        if self._zero_stage == 3:
            return partition_range(parameter)
        return fragment_range(parameter)

    def held_range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """The elements of a flattened parameter that the module itself holds on this rank under ZeRO 3."""
        assert self.splits_modules
        return partition_range(parameter)

    def own(self, parameter: nn.Parameter, kind: str | None = None) -> Tensor:
        """This rank's elements of a parameter's master weights, or of the moment `kind`, flat; may not be a copy."""
        if self._zero_stage == 0:
            return self._plain(parameter, kind).detach().view(-1)
        if self._zero_stage == 3:
            start, stop = partition_range(parameter)
            utils = self._deepspeed.utils
            part: Tensor = (
                utils.safe_get_local_fp32_param(parameter)
                if kind is None
                else utils.safe_get_local_optimizer_state(parameter, kind)
            )
            return part.detach()[: stop - start]
        return fragment(parameter, kind)

    def write_own(self, parameter: nn.Parameter, value: Tensor, kind: str | None = None) -> None:
        """Set this rank's elements of a parameter's master weights, or of the moment `kind`, to a flat value."""
        value = value.to(parameter.device)
        if self._zero_stage == 3:
            value = padded_partition(parameter, value)
            if kind is None:
                self._deepspeed.utils.safe_set_local_fp32_param(parameter, value)
            else:
                self._deepspeed.utils.safe_set_local_optimizer_state(parameter, value, kind)
        elif len(value):
            self.own(parameter, kind).copy_(value)

    def held(self, parameter: nn.Parameter) -> Tensor:
        """The elements of a parameter that the module itself holds on this rank, flat; may not be a copy."""
        if not self.splits_modules:
            return parameter.detach().view(-1)
        start, stop = partition_range(parameter)
        return partition(parameter)[: stop - start]

    def write_held(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the elements of a parameter that the module itself holds on this rank under ZeRO 3."""
        partition(parameter).copy_(padded_partition(parameter, value))

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Shape of a parameter on this tensor rank; ZeRO 3 leaves an empty one."""
        return local_shape(parameter)

    @property
    def splits_modules(self) -> bool:
        """Whether modules hold only partitions of their parameters."""
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
        for master in adam_parameters(self._engine, self._zero_stage):
            self._adam.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                FIRST_MOMENT: torch.zeros_like(master),
                SECOND_MOMENT: torch.zeros_like(master),
            }
        link_moments(self._engine)
