"""SmolTolk (arXiv 2503.06211): a list of pipeline layers, run in sequence."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tolktrain.libraries.torch_compat import forget_compiled_variants
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier, pack_carrier, unpack_carrier
from tolktrain.model.embedding import Embedding
from tolktrain.model.heads import Heads
from tolktrain.model.initialization import initialize_parameters
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import BackboneLayer, OutputAdapterLayer
from tolktrain.model.lora import LowRank
from tolktrain.model.loss import ComparedSums, LossSums
from tolktrain.model.parameter_layout import LayeredModel, PipelineLayer, TensorShare, parameter_views
from tolktrain.model.parts import model_parts
from tolktrain.model.pooling import POOLING_MODES, LayerPooling
from tolktrain.model.transformer import Block, megatron_config
from tolktrain.parallel.layout import Layout, initialize
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.segment_attention import segment_attention
from tolktrain_kernels.speech_adapter import place_rows

_COMPILED_VARIANTS = 32


@dataclass(frozen=True)
class NextLogits:
    """Logits of the next token of each of B sequences, as text and as speech; the caller chooses the modality."""

    text: Tensor  # [B, V_t]
    speech: Tensor  # [B, K, V_s]


def build_layers(architecture: Architecture, layout: Layout, bounds: range | None = None) -> dict[int, PipelineLayer]:
    """The layers of `model_parts`, or a part of that list.

    Args:
        architecture: sizes and switches.
        layout: of the ranks; each builds its part of every layer.
        bounds: positions in the list that are built; all if None.

    Returns:
        Layers by their position in the whole list.
    """
    config = megatron_config(architecture, layout.tensor_size, layout.sequence_parallel)
    parts = model_parts(architecture)
    layers: dict[int, PipelineLayer] = {}
    for place in range(len(parts)) if bounds is None else bounds:
        part, index = parts[place]
        if part is Heads:
            embedding = layers.get(0)
            assert embedding is None or isinstance(embedding, Embedding)
            layers[place] = Heads(architecture, config, embedding)
        else:
            layers[place] = part(architecture, config, *([] if index is None else [index]))
    return layers


class SmolTolk(LayeredModel):
    """The text-speech language model, or the part of it that one rank holds.

    Every part is computed for every micro batch: in a micro batch of text only, a single position passes through the
    speech adapters, and its results do not count. So all ranks use all parameters in the same order, whatever their
    micro batches contain. ZeRO requires this, because it reduces gradients when they are computed.
    """

    def __init__(
        self,
        architecture: Architecture,
        seed: int | None,
        layout: Layout | None = None,
        bounds: range | None = None,
    ) -> None:
        """Build on the CPU in float32.

        Args:
            architecture: sizes and switches.
            seed: of the random weights; None leaves them uninitialized, for a caller that sets all of them.
            layout: of the ranks; a single process if None.
            bounds: positions in the list of layers that this rank holds; all if None.
        """
        layout = initialize() if layout is None else layout
        super().__init__(architecture, TensorShare(layout.tensor_rank, layout.tensor_size))
        self._around_training: Callable[[], AbstractContextManager[None]] = nullcontext
        layers = build_layers(architecture, layout, bounds)
        self.layers.update({str(index): layer for index, layer in layers.items()})
        for name, view in parameter_views(self).items():
            # In the gradient norm, DeepSpeed counts parameters without this mark once per tensor group.
            self.get_parameter(name).tensor_model_parallel = view.dim is not None  # type: ignore[attr-defined]
        if seed is not None:
            initialize_parameters(self, seed)

    @property
    def heads(self) -> Heads:
        """The last layer."""
        *_, heads = self.layers.values()
        assert isinstance(heads, Heads)
        return heads

    @property
    def ends_model(self) -> bool:
        """Whether this rank holds the heads."""
        return any(isinstance(layer, Heads) for layer in self.layers.values())

    @property
    def trunk(self) -> list[nn.Module]:
        """This rank's layers without the heads."""
        return [layer for layer in self.layers.values() if not isinstance(layer, Heads)]

    @property
    def tied_tables(self) -> list[nn.Parameter]:
        """Tables that embedding and heads share, if these are on different pipeline stages and each has a copy."""
        ends = [layer for layer in self.layers.values() if isinstance(layer, (Embedding, Heads))]
        if len(ends) != 1:
            return []
        text, speech = ends[0].parameters_of_tables()
        return [*([text] if self.architecture.tie_text_embeddings else []), *speech]

    def recompute_layers(self) -> None:
        """Let the backward pass recompute transformer layers instead of keeping their activations."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    def compile_layers(self) -> None:
        """Compile the layers of backbone and output adapter, and the pooling if it is PyTorch's, with torch.compile.

        The layers of the input adapter are not compiled: their number of rows and the lengths of segments change in
        every step, and PyTorch stops compiling a piece of code after a few variants.
        """
        # A run needs more variants than the default: frozen and trained, training and validation, and any number of
        # sequences that predict speech. Variants of models that were deleted do not count.
        forget_compiled_variants(_COMPILED_VARIANTS)
        for layer in self.layers.values():
            if isinstance(layer, (BackboneLayer, OutputAdapterLayer)):
                layer.block.layer.compile()
                # Like those of speech segments, numbers and lengths of documents change in every step.
                attention = layer.block.layer.self_attention.core_attention
                attention.attend_inside = torch.compiler.disable(segment_attention)
            if isinstance(layer, LayerPooling) and layer.average.kernels.backend == "torch":
                layer.average.compile()

    def use_kernels(self, kernels: Kernels) -> None:
        """Use these kernels in all parts. They must support the device of the model."""
        for module in self.modules():
            if hasattr(module, "kernels"):
                module.kernels = kernels  # type: ignore[assignment]

    def carry(self, state: ModelInputs | Carrier) -> Carrier:
        """Run this rank's layers before the heads."""
        for layer in self.trunk:
            state = layer(state)
        assert isinstance(state, Carrier)
        return state

    def forward(self, inputs: ModelInputs) -> LossSums | ComparedSums:
        """Summed losses of a micro batch; for a model without pipeline stages."""
        with self._surrounded():
            return self.heads(self.carry(inputs))

    def run_stage(self, received: Tensor | None, inputs: ModelInputs) -> Tensor | LossSums | ComparedSums:
        """Pass a micro batch through this rank's pipeline stage: from the tensor of the previous stage (None on the
        first one) to the tensor for the next stage, both [n, T', B, D]; on the last stage, to the summed losses."""
        state: ModelInputs | Carrier = inputs
        with self._surrounded():
            if received is not None:
                first = min(int(index) for index in self.layers)
                num_layers = first - 1 - self.architecture.input_adapter_layers
                state = unpack_carrier(self.architecture, received, inputs, num_layers)
            carrier = self.carry(state)
            return self.heads(carrier) if self.ends_model else pack_carrier(carrier)

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """In this context, low-rank updates add zero. They are computed, so that ZeRO 3 sees the same modules."""
        updates = [module for module in self.modules() if isinstance(module, LowRank)]
        for update in updates:
            update.scale = 0.0
        try:
            yield
        finally:
            for update in updates:
                update.scale = update.lora.scale

    def time_training(self, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter the context of `around` for every forward pass of training."""
        self._around_training = around

    def _surrounded(self) -> AbstractContextManager[None]:
        return self._around_training() if self.training else nullcontext()

    @torch.no_grad()
    def token_nll(self, inputs: ModelInputs) -> Tensor:
        """Negative log-likelihood of each target, float32 [B, T] in nats; 0 if it is not scored."""
        carrier, scored = self.carry(inputs), inputs.scored
        length, width = inputs.sequence_length, inputs.num_sequences
        total = torch.zeros(length, width, device=inputs.tokens.device)
        if scored.num_text:
            total += place_rows(self.heads.text_nll(carrier)[1], scored.text, length * width).view(length, width)
        if scored.num_speech:
            speech = place_rows(self.heads.speech_nll(carrier)[1], scored.speech, length * scored.num_columns)
            total.index_add_(1, scored.columns, speech.view(length, scored.num_columns))
        return total.t()

    @torch.no_grad()
    def next_logits(self, inputs: ModelInputs) -> NextLogits:
        """Logits of the token after each sequence, float32. The inputs come from `ModelInputs.for_next`."""
        carrier = self.carry(inputs)
        speech = torch.stack(self.heads.speech_logits(carrier), dim=1)
        return NextLogits(self.heads.text_logits(carrier).float(), speech.float())

    @torch.no_grad()
    def layer_probs(self, inputs: ModelInputs) -> Tensor | None:
        """The selector's weights of the backbone's layers, float32 [B, T, L]; None without a selector.

        0 in sequences that predict no speech, unless the inputs were made with `every_sequence`.
        """
        if not POOLING_MODES[self.architecture.layer_pooling].dynamic:
            return None
        carrier, scored = self.carry(inputs), inputs.scored
        shape = (inputs.sequence_length, inputs.num_sequences, self.architecture.num_layers)
        probs = torch.zeros(shape, device=inputs.tokens.device)
        assert carrier.pooled is not None and carrier.pooled.probs is not None
        if scored.num_columns:
            probs.index_copy_(1, scored.columns, carrier.pooled.probs.float())
        return probs.transpose(0, 1)
