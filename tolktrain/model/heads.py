"""Heads and loss: K speech heads tied to the speech tables, a text head tied to the text table or not."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.embedding import Embedding
from tolktrain.model.naming import ParameterView, PipelineLayer
from tolktrain.model.transformer import ColumnLinear
from tolktrain.parallel.megatron import TransformerConfig
from tolktrain_kernels.speech_adapter import gather_rows


class LossSums(NamedTuple):
    """Sums over a micro batch, so that any split of a global batch adds up to the same loss. Float32, []."""

    text_nll: Tensor  # nats, over the positions scored as text
    speech_nll: Tensor  # nats, over the positions scored as speech, codebooks summed
    entropy: Tensor  # nats, of the layer selector over all positions of the sequences that predict speech


class TableHead(nn.Module):
    """Logits over the first rows of a table, which it shares with an embedding where they are tied."""

    def __init__(self, table: nn.Parameter, num_predicted: int, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = table  # [rows, D]; rows beyond num_predicted are never predicted
        self.num_predicted = num_predicted
        self.linear = ColumnLinear(
            config.hidden_size,
            num_predicted,
            config=config,
            init_method=None,
            bias=False,
            skip_weight_param_allocation=True,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, D] to [N, num_predicted]."""
        table = self.weight
        logits, _ = self.linear(
            hidden, weight=table if len(table) == self.num_predicted else table[: self.num_predicted]
        )
        return logits


class Heads(PipelineLayer):
    """The end of the list of layers. Logits are computed only where they are asked for."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.architecture = architecture
        text_table = embedding.text.weight
        if not architecture.tie_text_embeddings:
            shape = (architecture.text_vocab_size, architecture.hidden_size)
            text_table = nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
        self.text = TableHead(text_table, architecture.text_vocab_size, config)
        size = architecture.speech_vocab_size
        self.speech = nn.ModuleList(TableHead(table, size, config) for table in embedding.speech_tables)

    def text_logits(self, carrier: Carrier) -> Tensor:
        """[N_t, V_t] at the rows scored as text."""
        return self.text(gather_rows(carrier.hidden.flatten(0, 1), carrier.inputs.scored.text))

    def speech_logits(self, carrier: Carrier) -> list[Tensor]:
        """K tensors [N_s, V_s] at the rows scored as speech."""
        assert carrier.speech_hidden is not None
        hidden = gather_rows(carrier.speech_hidden.flatten(0, 1), carrier.inputs.scored.speech)
        return [head(hidden) for head in self.speech]

    def text_nll(self, carrier: Carrier) -> Tensor:
        """[N_t] float32, nats."""
        return _nll(self.text_logits(carrier), carrier.inputs.scored.text_targets)

    def speech_nll(self, carrier: Carrier) -> Tensor:
        """[N_s] float32, nats, summed over the codebooks; a codebook whose target is PAD does not count."""
        targets, pad = carrier.inputs.scored.speech_targets, self.architecture.speech_pad
        parts = [_nll(logits, targets[:, k], pad) for k, logits in enumerate(self.speech_logits(carrier))]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def forward(self, carrier: Carrier) -> LossSums:
        """Sums of the micro batch; a modality that is not scored gives a constant zero."""
        scored = carrier.inputs.scored
        zero = carrier.hidden.new_zeros((), dtype=torch.float32)
        if scored.num_text == 0 and scored.num_speech == 0:
            # Still part of the graph, so that a micro batch of nothing but padding can be sent backward.
            return LossSums((carrier.hidden * 0).sum(dtype=torch.float32), zero, zero)
        entropy = carrier.pooled.entropy if carrier.pooled is not None else None
        return LossSums(
            text_nll=self.text_nll(carrier).sum() if scored.num_text else zero,
            speech_nll=self.speech_nll(carrier).sum() if scored.num_speech else zero,
            entropy=entropy.sum() if entropy is not None else zero,
        )

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical view of an untied text head; tied tables belong to the embedding."""
        if self.architecture.tie_text_embeddings:
            return {}
        shape = tuple(self.text.weight.shape)
        return {"text.weight": ParameterView(("text_head.weight",), (shape,), "backbone", decays=True)}


def _nll(logits: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(exact, targets, reduction="none", ignore_index=ignored)
