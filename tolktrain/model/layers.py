"""Adapters and backbone as pipeline layers (SmolTolk, arXiv 2503.06211, section 3)."""

from dataclasses import replace

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.parameter_layout import ParameterView, PipelineLayer
from tolktrain.model.transformer import Block, RMSNorm, block_cost
from tolktrain.parallel.megatron import (
    TransformerConfig,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.speech_adapter import gather_rows, merge_speech, replace_rows


class InputAdapterLayer(PipelineLayer):
    """A layer over packed speech; a position attends to earlier positions of its own segment. Text is unchanged."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"input_adapter.layers.{index}", "speech")
        self.is_last = index == architecture.input_adapter_layers - 1
        self.shares_sequence = config.sequence_parallel
        self.kernels = Kernels()

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `speech`; the last layer writes it back into `hidden`."""
        assert carrier.speech is not None and carrier.segment_context is not None
        if not self.is_last:
            return replace(carrier, speech=self.block(carrier.speech, carrier.segment_context))
        hidden, segments = carrier.hidden.flatten(0, 1), carrier.inputs.segments
        _, *parts = self.block.parts(carrier.speech, carrier.segment_context)
        packed, update = (part.flatten(0, 1) for part in parts)
        if self.shares_sequence:
            assert carrier.segment_context.mask is None, "the dense mask is for a model in one process"
            # The following operations and their gradients are the same on all tensor ranks.
            speech = gather_from_sequence_parallel_region(packed + update, tensor_parallel_output_grad=False)
            hidden = replace_rows(hidden, segments.rows, speech[: segments.num_positions])
        elif carrier.segment_context.mask is not None:
            hidden = replace_rows(hidden, segments.rows, gather_rows(packed + update, segments.rows))
        else:
            hidden = merge_speech(hidden, segments, packed, update, self.kernels.backend)
        hidden = hidden.view_as(carrier.hidden)
        if self.shares_sequence:
            hidden = scatter_to_sequence_parallel_region(hidden)
        return replace(carrier, speech=None, segment_context=None, hidden=hidden)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """On speech only, inside its segments; with the published dense mask, on every position."""
        rows, pairs = counts.speech_positions, counts.segment_pairs
        if architecture.adapter_attention == "published":
            length = 2 * counts.causal_pairs // max(counts.positions, 1) - 1
            rows, pairs = counts.positions, counts.positions * length
        return block_cost(architecture, "input adapter", index, "speech", rows, pairs)


class BackboneLayer(PipelineLayer):
    """A decoder layer, causal over everything, or over the document."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"backbone.layers.{index}", "backbone")
        # Whether the output is kept for the pooling, which takes that of the last layer after the final norm.
        self.keeps = architecture.keeps_states and index < architecture.num_layers - 1
        self.keeps_input = architecture.keeps_states

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `hidden`, all but the last addition, which the norm of the next layer does; keep the input for the
        pooling, if it is the output of a layer and not kept yet."""
        entered, hidden, update = self.block.parts(carrier.hidden, carrier.context, carrier.update)
        states = carrier.states
        if self.keeps_input and carrier.update is not None:
            states = (*states, entered)
        return replace(carrier, hidden=hidden, update=update, states=states)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """On all positions."""
        return block_cost(architecture, "backbone", index, "backbone", counts.positions, counts.causal_pairs)


class FinalNorm(PipelineLayer):
    """The backbone's final norm, which computes h_L."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.width = architecture.hidden_size
        self.norm = RMSNorm(config, self.width, architecture.rms_norm_eps)

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `hidden` to h_L."""
        if carrier.update is None:
            return replace(carrier, hidden=self.norm(carrier.hidden))
        _, hidden = self.norm(carrier.hidden, carrier.update)
        return replace(carrier, hidden=hidden, update=None)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical view of the norm."""
        return {
            "norm.weight": ParameterView(("backbone.norm.weight",), ((self.width,),), "backbone", "ones", decays=False)
        }

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """x^2, the sum, and two scalings."""
        width = architecture.hidden_size
        elementwise = round(4 * width * counts.positions)
        return LayerCost("final norm", index, {"backbone": width}, 0, 0, elementwise)


class OutputAdapterLayer(PipelineLayer):
    """A layer before the speech head, causal over the whole mixed sequence, or over the document."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.block = Block(architecture, config, f"output_adapter.layers.{index}", "speech")

    def forward(self, carrier: Carrier) -> Carrier:
        """Update `speech_hidden`."""
        assert carrier.speech_hidden is not None
        context = carrier.context if carrier.output_context is None else carrier.output_context
        return replace(carrier, speech_hidden=self.block(carrier.speech_hidden, context))

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters."""
        return _prefixed("block", self.block.parameter_views())

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """On all positions of the sequences that predict speech."""
        rows, pairs = counts.predicting_positions, counts.predicting_pairs
        return block_cost(architecture, "output adapter", index, "speech", rows, pairs)


def _prefixed(prefix: str, views: dict[str, ParameterView]) -> dict[str, ParameterView]:
    return {f"{prefix}.{name}": view for name, view in views.items()}
