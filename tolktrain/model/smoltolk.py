"""SmolTolk (arXiv 2503.06211): a list of pipeline layers, run in sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.embedding import Embedding
from tolktrain.model.heads import Heads, LossSums
from tolktrain.model.initialization import initialize_parameters
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, LayerPooling, OutputAdapterLayer
from tolktrain.model.naming import PipelineLayer
from tolktrain.model.transformer import megatron_config
from tolktrain.parallel.layout import initialize
from tolktrain.parallel.megatron import parallel_state
from tolktrain_kernels.speech_adapter import place_rows

__all__ = ["LossSums", "NextLogits", "SmolTolk", "build_layers", "loss_from_sums"]


@dataclass(frozen=True)
class NextLogits:
    """What may come next in each of B sequences, as text or as speech; the caller decides which."""

    text: Tensor  # [B, V_t]
    speech: Tensor  # [B, K, V_s]


def build_layers(architecture: Architecture) -> list[PipelineLayer]:
    """The model as a list: embedding, input adapter, backbone, final norm, pooling, output adapter, heads.

    The first takes `ModelInputs`, the last gives `LossSums`, a `Carrier` goes from each to the next.
    """
    config = megatron_config(architecture)
    embedding = Embedding(architecture, config)
    return [
        embedding,
        *(InputAdapterLayer(architecture, config, i) for i in range(architecture.input_adapter_layers)),
        *(BackboneLayer(architecture, config, i) for i in range(architecture.num_layers)),
        FinalNorm(architecture, config),
        LayerPooling(architecture, config),
        *(OutputAdapterLayer(architecture, config, i) for i in range(architecture.output_adapter_layers)),
        Heads(architecture, config, embedding),
    ]


class SmolTolk(nn.Module):
    """The text-speech language model, whole in one process or replicated over data-parallel ones."""

    def __init__(self, architecture: Architecture, seed: int | None) -> None:
        """Build on the CPU in float32.

        Args:
            architecture: sizes and switches.
            seed: of the random weights; None leaves them unset, for a caller that sets each.
        """
        super().__init__()
        if not parallel_state.model_parallel_is_initialized():
            initialize()
        self.architecture = architecture
        self.layers = nn.ModuleList(build_layers(architecture))
        if seed is not None:
            initialize_parameters(self, seed)

    @property
    def heads(self) -> Heads:
        """The last layer."""
        heads = self.layers[-1]
        assert isinstance(heads, Heads)
        return heads

    def carry(self, inputs: ModelInputs) -> Carrier:
        """Everything before the heads."""
        state = inputs
        for layer in self.layers[:-1]:
            state = layer(state)
        assert isinstance(state, Carrier)
        return state

    def forward(self, inputs: ModelInputs) -> LossSums:
        """Summed losses of a micro batch. What no position needs (speech parts, a head) is not computed."""
        return self.heads(self.carry(inputs))

    @torch.no_grad()
    def token_nll(self, inputs: ModelInputs) -> Tensor:
        """Negative log-likelihood of each target, float32 [B, T] in nats; 0 where none is scored."""
        carrier, scored = self.carry(inputs), inputs.scored
        length, width = inputs.sequence_length, inputs.num_sequences
        total = torch.zeros(length, width, device=inputs.tokens.device)
        if scored.num_text:
            total += place_rows(self.heads.text_nll(carrier), scored.text, length * width).view(length, width)
        if scored.num_speech:
            speech = place_rows(self.heads.speech_nll(carrier), scored.speech, length * scored.num_columns)
            total.index_add_(1, scored.columns, speech.view(length, scored.num_columns))
        return total.t()

    @torch.no_grad()
    def next_logits(self, inputs: ModelInputs) -> NextLogits:
        """Logits of what follows each sequence's end, float32. The inputs come from `ModelInputs.for_next`."""
        carrier = self.carry(inputs)
        speech = torch.stack(self.heads.speech_logits(carrier), dim=1)
        return NextLogits(self.heads.text_logits(carrier).float(), speech.float())

    @torch.no_grad()
    def layer_probs(self, inputs: ModelInputs) -> Tensor | None:
        """Weights that the selector gives to the backbone's layers, float32 [B, T, L]; None without a selector.

        0 in sequences that predict no speech, unless the inputs were made with `every_sequence`.
        """
        if not self.architecture.dynamic_pooling:
            return None
        carrier, scored = self.carry(inputs), inputs.scored
        shape = (inputs.sequence_length, inputs.num_sequences, self.architecture.num_layers)
        probs = torch.zeros(shape, device=inputs.tokens.device)
        if carrier.pooled is not None and carrier.pooled.probs is not None:
            probs.index_copy_(1, scored.columns, carrier.pooled.probs.float())
        return probs.transpose(0, 1)


def loss_from_sums(sums: LossSums, num_scored: int, num_entropy_positions: int, entropy_weight: float) -> Tensor:
    """(text + speech nll) / scored positions - weight * entropy / positions, all counts of the whole global batch.

    Args:
        sums: of one micro batch; the results of all micro batches add up to the loss of the global batch.
        num_scored: positions scored as text or speech in the global batch.
        num_entropy_positions: positions of the sequences that predict speech in the global batch; may be 0.
        entropy_weight: of the selector's entropy, in nats.
    """
    loss = (sums.text_nll + sums.speech_nll) / max(num_scored, 1)
    if num_entropy_positions == 0 or entropy_weight == 0.0:
        return loss
    return loss - sums.entropy * (entropy_weight / num_entropy_positions)
