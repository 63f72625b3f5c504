"""Heads and loss: K speech heads tied to the speech tables, a text head tied to the text table or not."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.embedding import Embedding, empty_table, speech_table_views, text_table_view
from tolktrain.model.loss import ComparedSums, LossSums
from tolktrain.model.parameter_layout import ParameterView, PipelineLayer, TensorShare
from tolktrain.parallel.megatron import (
    TransformerConfig,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    parallel_state,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.cross_entropy import linear_cross_entropy
from tolktrain_kernels.speech_adapter import gather_rows


class TableHead(nn.Module):
    """Logits over the first rows of a table, which it shares with an embedding if they are tied.

    A tensor rank computes those of its own rows.
    """

    def __init__(self, table: nn.Parameter, num_predicted: int, share: TensorShare) -> None:
        super().__init__()
        self.weight = table  # [this rank's rows, D]; rows beyond num_predicted of the whole are never predicted
        self.num_predicted = num_predicted
        self.share = share
        self.kernels = Kernels()

    def forward(
        self, hidden: Tensor, targets: Tensor, ignored: int | None = None, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of targets [N] in nats: float32, the sum [], and the terms [N] without gradient.

        Targets equal to `ignored` do not count. `factors` [N] are those of the terms in the sum.
        """
        if self.share.size == 1:
            backend = self.kernels.backend
            return linear_cross_entropy(hidden, self.weight, targets, self.num_predicted, ignored, backend, factors)
        nll = vocab_parallel_cross_entropy(self.logits(hidden), targets)
        nll = nll if ignored is None else nll.masked_fill(targets == ignored, 0.0)
        return (nll if factors is None else nll * factors).sum(), nll.detach()

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] to [N, num_predicted] without tensor parallelism, else to [N, this rank's rows]."""
        rows = len(self.weight)
        num_predicted = min(max(self.num_predicted - self.share.rank * rows, 0), rows)
        if self.share.size == 1:
            return functional.linear(hidden, self.weight[:num_predicted] if num_predicted < rows else self.weight)
        logits = functional.linear(hidden, self.weight)
        if num_predicted < rows:
            unpredicted = torch.arange(rows, device=logits.device) >= num_predicted
            logits = logits.masked_fill(unpredicted, -torch.inf)
        return logits

    def all_logits(self, hidden: Tensor) -> Tensor:
        """[N, D] to [N, num_predicted] on every tensor rank."""
        logits = self.logits(hidden)
        if self.share.size == 1:
            return logits
        gathered: Tensor = gather_from_tensor_model_parallel_region(logits)
        return gathered[:, : self.num_predicted]


class Heads(PipelineLayer):
    """The last layer of the list. Logits are computed only for the requested rows."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, embedding: Embedding | None) -> None:
        """`embedding` is None if it is on another pipeline stage; tied tables are then copies."""
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.owns_tables = embedding is None
        self._share = TensorShare(parallel_state.get_tensor_model_parallel_rank(), config.tensor_model_parallel_size)
        text_rows, speech_rows = architecture.text_vocab_size, architecture.speech_vocab_size
        if not architecture.tie_text_embeddings:
            text_table = empty_table(text_rows, config)
        elif embedding is not None:
            text_table = embedding.tables.text
        else:
            text_table = empty_table(architecture.text_table_size, config)
        if embedding is not None:
            speech_tables = embedding.tables.speech
        else:
            speech_tables = [empty_table(speech_rows, config) for _ in range(architecture.num_codebooks)]
        self.text = TableHead(text_table, text_rows, self._share)
        self.speech = nn.ModuleList(TableHead(table, speech_rows, self._share) for table in speech_tables)

    def parameters_of_tables(self) -> tuple[nn.Parameter, list[nn.Parameter]]:
        """Of text, and of each codebook of speech."""
        return self.text.weight, [head.weight for head in self.speech]  # type: ignore[misc]

    def text_logits(self, carrier: Carrier) -> Tensor:
        """[N_t, V_t] at the rows scored as text, on every tensor rank."""
        return self.text.all_logits(self._rows(carrier.hidden, carrier.inputs.scored.text))

    def speech_logits(self, carrier: Carrier) -> list[Tensor]:
        """K tensors [N_s, V_s] at the rows scored as speech, on every tensor rank."""
        hidden = self._speech_rows(carrier)
        return [head.all_logits(hidden) for head in self.speech]  # type: ignore[operator]

    def text_nll(self, carrier: Carrier, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Nats: the sum, and the terms [N_t] without gradient. Float32. `factors` [N_t] are those of the terms."""
        scored, rows = carrier.inputs.scored, self._rows(carrier.hidden, carrier.inputs.scored.text)
        found: tuple[Tensor, Tensor] = self.text(rows, scored.text_targets, None, factors)
        return found

    def speech_nll(self, carrier: Carrier, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same of speech, [N_s], summed over the codebooks; a codebook whose target is PAD does not count."""
        targets, hidden = carrier.inputs.scored.speech_targets, self._speech_rows(carrier)
        pad = self.architecture.speech_pad
        parts = [head(hidden, targets[:, k], pad, factors) for k, head in enumerate(self.speech)]
        sums, terms = zip(*parts, strict=True)
        return torch.stack(sums).sum(), torch.stack(terms).sum(dim=0)

    def forward(self, carrier: Carrier) -> LossSums | ComparedSums:
        """Sums of the micro batch; if a modality is not scored, its sum is zero but part of the graph."""
        assert carrier.pooled is not None
        entropy = carrier.pooled.entropy
        total = carrier.hidden.new_zeros((), dtype=torch.float32)
        if entropy is not None:
            documents = carrier.inputs.documents
            if documents is not None and carrier.inputs.scored.num_columns:
                counted = documents.counted
                shares = self.config.sequence_parallel
                entropy = entropy * (scatter_to_sequence_parallel_region(counted) if shares else counted)
            total = entropy.sum() if carrier.inputs.scored.num_columns else entropy.sum() * 0
            if self.config.sequence_parallel:
                total = reduce_from_tensor_model_parallel_region(total)
        if carrier.inputs.preference is not None:
            return self._compare(carrier, total)
        return LossSums(text_nll=self.text_nll(carrier)[0], speech_nll=self.speech_nll(carrier)[0], entropy=total)

    def _compare(self, carrier: Carrier, entropy: Tensor) -> ComparedSums:
        """Sums of a micro batch of preferences."""
        assert carrier.inputs.preference is not None
        with torch.no_grad():
            (text_nll, text_terms), (speech_nll, speech_terms) = self.text_nll(carrier), self.speech_nll(carrier)
            found = carrier.inputs.preference.compare(text_terms, speech_terms)
        sums = found.sums
        if torch.is_grad_enabled():
            surrogate = self.text_nll(carrier, found.text_factors)[0]
            surrogate = surrogate + self.speech_nll(carrier, found.speech_factors)[0]
            sums = sums._replace(loss=sums.loss + (surrogate - surrogate.detach()))
        return ComparedSums(LossSums(text_nll, speech_nll, entropy.detach()), sums, found.log_probs)

    def _speech_rows(self, carrier: Carrier) -> Tensor:
        assert carrier.speech_hidden is not None
        return self._rows(carrier.speech_hidden, carrier.inputs.scored.speech)

    def _rows(self, states: Tensor, rows: Tensor) -> Tensor:
        """Rows of states [T', width, D]; each tensor rank computes a part of their logits."""
        if self.config.sequence_parallel:
            return gather_rows(gather_from_sequence_parallel_region(states).flatten(0, 1), rows)
        selected = gather_rows(states.flatten(0, 1), rows)
        return selected if self._share.size == 1 else copy_to_tensor_model_parallel_region(selected)

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of an untied text head and of copies; tied tables belong to the embedding."""
        views: dict[str, ParameterView] = {}
        if not self.architecture.tie_text_embeddings:
            shape = (self.architecture.text_vocab_size, self.architecture.hidden_size)
            views["text.weight"] = ParameterView(
                ("text_head.weight",), (shape,), "backbone", "normal", decays=True, dim=0
            )
        elif self.owns_tables:
            views["text.weight"] = text_table_view(self.architecture, is_copy=True)
        if self.owns_tables:
            copies = enumerate(speech_table_views(self.architecture, is_copy=True))
            views |= {f"speech.{codebook}.weight": view for codebook, view in copies}
        return views

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """Each head where its modality is predicted."""
        text = architecture.text_vocab_size * architecture.hidden_size
        speech = architecture.num_codebooks * architecture.speech_vocab_size * architecture.hidden_size
        own = 0 if architecture.tie_text_embeddings else text
        matrices = round(2 * (counts.text_scored * text + counts.speech_scored * speech))
        return LayerCost("heads", index, {"backbone": own}, matrices, 0)
