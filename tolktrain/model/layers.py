"""Adapters, backbone and pooling as pipeline layers (SmolTolk, arXiv 2503.06211, section 3)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.parameter_layout import ParameterView, PipelineLayer
from tolktrain.model.transformer import Block, RMSNorm, mark_sequence_parallel
from tolktrain.parallel.megatron import (
    TransformerConfig,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.layer_pooling import PooledLayers, pool_layers
from tolktrain_kernels.speech_adapter import gather_rows, merge_speech, replace_rows, select_columns


class InputAdapterLayer(PipelineLayer):
    """A layer over packed speech; a position sees earlier positions of its own run only. Text passes by unchanged."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"input_adapter.layers.{index}", "speech")
        self.is_last = index == architecture.input_adapter_layers - 1
        self.shares_sequence = config.sequence_parallel
        self.kernels = Kernels()

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `speech`; the last layer writes it back into `hidden`."""
        assert carrier.speech is not None and carrier.run_context is not None
        if not self.is_last:
            return replace(carrier, speech=self.block(carrier.speech, carrier.run_context))
        hidden, runs = carrier.hidden.flatten(0, 1), carrier.inputs.runs
        packed, update = (part.flatten(0, 1) for part in self.block.parts(carrier.speech, carrier.run_context))
        if self.shares_sequence:
            assert carrier.run_context.mask is None, "the dense mask is for a model in one process"
            # What follows is the same on all tensor ranks, and so is its gradient.
            speech = gather_from_sequence_parallel_region(packed + update, tensor_parallel_output_grad=False)
            hidden = replace_rows(hidden, runs.rows, speech[: runs.num_positions])
        elif carrier.run_context.mask is not None:
            hidden = replace_rows(hidden, runs.rows, gather_rows(packed + update, runs.rows))
        else:
            hidden = merge_speech(hidden, runs, packed, update, self.kernels.backend)
        hidden = hidden.view_as(carrier.hidden)
        if self.shares_sequence:
            hidden = scatter_to_sequence_parallel_region(hidden)
        return replace(carrier, speech=None, run_context=None, hidden=hidden)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())


class BackboneLayer(PipelineLayer):
    """A decoder layer, causal over everything."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"backbone.layers.{index}", "backbone")
        self.keeps = architecture.layer_pooling != "none" and index < architecture.num_layers - 1

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `hidden`; keep it for the pooling, except after the last layer, which counts behind the final norm."""
        hidden = self.block(carrier.hidden, carrier.context)
        return replace(carrier, hidden=hidden, states=(*carrier.states, hidden) if self.keeps else carrier.states)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())


class FinalNorm(PipelineLayer):
    """The backbone's last norm: makes h_L."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.width = architecture.hidden_size
        self.norm = RMSNorm(config, self.width, architecture.rms_norm_eps)

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `hidden` to h_L."""
        return replace(carrier, hidden=self.norm(carrier.hidden))

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical view of the norm."""
        return {"norm.weight": ParameterView(("backbone.norm.weight",), ((self.width,),), "backbone", decays=False)}


class WeightedAverage(nn.Module):
    """The pooling's weights. Tensors in, tensors out: ZeRO 3 gathers a module's own parameters by such hooks."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        num_layers, width, dtype = architecture.num_layers, architecture.hidden_size, config.params_dtype
        self.layer_weights = self.selector_weight = self.selector_bias = None
        if architecture.static_pooling:
            self.layer_weights = nn.Parameter(torch.zeros(num_layers, dtype=dtype))
        if architecture.dynamic_pooling:
            self.selector_weight = nn.Parameter(torch.zeros(num_layers, width, dtype=dtype))
            self.selector_bias = nn.Parameter(torch.zeros(num_layers, dtype=dtype))
        for parameter in self.parameters():
            mark_sequence_parallel(parameter, config)
        self.kernels = Kernels()

    def forward(self, states: list[Tensor], residual: Tensor | None) -> PooledLayers:
        """Average L states [..., D]."""
        weights = (self.layer_weights, self.selector_weight, self.selector_bias)
        return pool_layers(states, *weights, residual, backend=self.kernels.backend)


class LayerPooling(PipelineLayer):
    """Weighted average of h_1 .. h_L and the residual, over the sequences that predict speech."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.average = WeightedAverage(architecture, config)

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
        layers, width = self.architecture.num_layers, self.architecture.hidden_size
        views: dict[str, ParameterView] = {}
        if self.architecture.static_pooling:
            view = ParameterView(("pooling.layer_weights",), ((layers,),), "pooling", decays=False)
            views["average.layer_weights"] = view
        if self.architecture.dynamic_pooling:
            weight = ParameterView(("pooling.selector.weight",), ((layers, width),), "pooling", decays=True)
            bias = ParameterView(("pooling.selector.bias",), ((layers,),), "pooling", decays=False)
            views.update({"average.selector_weight": weight, "average.selector_bias": bias})
        return views


class OutputAdapterLayer(PipelineLayer):
    """A layer before the speech head, causal over the whole mixed sequence."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"output_adapter.layers.{index}", "speech")

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `speech_hidden`."""
        assert carrier.speech_hidden is not None
        return replace(carrier, speech_hidden=self.block(carrier.speech_hidden, carrier.context))

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())


def _prefixed(prefix: str, views: dict[str, ParameterView]) -> dict[str, ParameterView]:
    return {f"{prefix}.{name}": view for name, view in views.items()}
