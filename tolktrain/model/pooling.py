"""Weighted layer pooling (SmolTolk, arXiv 2503.06211, section 3.2) as a pipeline layer, and its modes.

A mode defines its weights, their names and its cost. It is an entry of `POOLING_MODES` under its name in the
configuration. A mode that is not a weighted average needs its own module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tolktrain.config.model import LayerPooling as ModeName
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.parameter_layout import ParameterView, PipelineLayer
from tolktrain.model.transformer import mark_sequence_parallel
from tolktrain.parallel.megatron import TransformerConfig
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.layer_pooling import PooledLayers, pool_layers
from tolktrain_kernels.speech_adapter import select_columns


class WeightedAverage(nn.Module):
    """The pooling's weights. Takes and returns tensors, so that ZeRO 3's hooks gather the parameters."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, static: bool, dynamic: bool) -> None:
        super().__init__()
        num_layers, width, dtype = architecture.num_layers, architecture.hidden_size, config.params_dtype
        self.layer_weights = self.selector_weight = self.selector_bias = None
        if static:
            self.layer_weights = nn.Parameter(torch.zeros(num_layers, dtype=dtype))
        if dynamic:
            self.selector_weight = nn.Parameter(torch.zeros(num_layers, width, dtype=dtype))
            self.selector_bias = nn.Parameter(torch.zeros(num_layers, dtype=dtype))
        for parameter in self.parameters():
            mark_sequence_parallel(parameter, config)
        self.kernels = Kernels()

    def forward(self, states: list[Tensor], residual: Tensor | None) -> PooledLayers:
        """Average L states [..., D]."""
        weights = (self.layer_weights, self.selector_weight, self.selector_bias)
        return pool_layers(states, *weights, residual, backend=self.kernels.backend)


@dataclass(frozen=True)
class PoolingMode:
    """Weighted averages of the layers; without weights, the last layer."""

    static: bool  # weights that are the same everywhere
    dynamic: bool  # weights that a selector computes at each position

    @property
    def has_weights(self) -> bool:
        """Whether there are parameters."""
        return self.static or self.dynamic

    def make(self, architecture: Architecture, config: TransformerConfig) -> WeightedAverage:
        """The module: L states [..., D] and the residual to `PooledLayers`."""
        return WeightedAverage(architecture, config, self.static, self.dynamic)

    def parameter_views(self, architecture: Architecture) -> dict[str, ParameterView]:
        """Canonical views of the module's parameters. With zeros, all layers have equal weights."""
        layers, width = architecture.num_layers, architecture.hidden_size
        views: dict[str, ParameterView] = {}
        if self.static:
            names = ("pooling.layer_weights",)
            views["layer_weights"] = ParameterView(names, ((layers,),), "pooling", "zeros", decays=False)
        if self.dynamic:
            weight, bias = ("pooling.selector.weight",), ("pooling.selector.bias",)
            views["selector_weight"] = ParameterView(weight, ((layers, width),), "pooling", "normal", decays=True)
            views["selector_bias"] = ParameterView(bias, ((layers,),), "pooling", "zeros", decays=False)
        return views

    def cost(self, architecture: Architecture, index: int | None, rows: float) -> LayerCost:
        """Each average multiplies and adds L slices; the selector is a product [., D] x [D, L]."""
        average = 2 * architecture.num_layers * architecture.hidden_size
        parameters = architecture.num_layers * int(self.static)
        if self.dynamic:
            parameters += architecture.num_layers * (architecture.hidden_size + 1)
        averages = int(self.static) + int(self.dynamic)
        matrices = round(rows * average) if self.dynamic else 0
        return LayerCost("pooling", index, {"pooling": parameters}, matrices, 0, round(rows * averages * average))


POOLING_MODES: Mapping[ModeName, PoolingMode] = MappingProxyType(
    {
        "none": PoolingMode(static=False, dynamic=False),
        "static": PoolingMode(static=True, dynamic=False),
        "dynamic": PoolingMode(static=False, dynamic=True),
        "both": PoolingMode(static=True, dynamic=True),
    }
)


class LayerPooling(PipelineLayer):
    """Weighted average of h_1 .. h_L and the residual, over the sequences that predict speech."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.average = POOLING_MODES[architecture.layer_pooling].make(architecture, config)

    def forward(self, carrier: Carrier) -> Carrier:
        """Set `pooled` and `speech_hidden`."""
        states = [self._columns(carrier, state) for state in (*carrier.states, carrier.hidden)]
        residual = None
        if self.architecture.residual:
            assert carrier.embedded is not None
            residual = self._columns(carrier, carrier.embedded)
        pooled = self.average(states, residual)
        return replace(carrier, states=(), embedded=None, pooled=pooled, speech_hidden=pooled.pooled)

    @staticmethod
    def _columns(carrier: Carrier, state: Tensor) -> Tensor:
        scored = carrier.inputs.scored
        if scored.num_columns == 0:
            return state[:1, :1]
        return state if scored.num_columns == state.shape[1] else select_columns(state, scored.columns)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the pooling's weights."""
        views = POOLING_MODES[self.architecture.layer_pooling].parameter_views(self.architecture)
        return {f"average.{name}": view for name, view in views.items()}

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """On all positions of the sequences that predict speech."""
        rows = counts.predicting_positions
        cost = POOLING_MODES[architecture.layer_pooling].cost(architecture, index, rows)
        residual = architecture.hidden_size if architecture.residual else 0
        return replace(cost, elementwise=cost.elementwise + round(rows * residual))
