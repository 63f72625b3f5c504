"""Multimodal embedding (SmolTolk, arXiv 2503.06211, section 3.1): one table for text, one per codebook for speech."""

from torch import Tensor, nn
from torch.nn import functional

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.naming import ParameterView, PipelineLayer, TensorShare
from tolktrain.model.published_mask import published_adapter_mask
from tolktrain.model.transformer import AttentionContext, rotary_angles
from tolktrain.parallel.megatron import (
    TransformerConfig,
    VocabParallelEmbedding,
    scatter_to_sequence_parallel_region,
)
from tolktrain_kernels.speech_adapter import replace_rows


def padded_vocabulary(num_rows: int, config: TransformerConfig) -> int:
    """Rows of a table of which every tensor rank holds equally many."""
    size = config.tensor_model_parallel_size
    return size * TensorShare(size=size).padded_rows(num_rows)


class Embedding(PipelineLayer):
    """Token ids to e [T, B, D]. With several codebooks the embeddings of a frame are summed."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.text = self._table(architecture.text_table_size)
        self.speech = nn.ModuleList(
            self._table(architecture.speech_vocab_size) for _ in range(architecture.num_codebooks)
        )

    def forward(self, inputs: ModelInputs) -> Carrier:
        """Start the carrier: embeddings, packed speech, angles."""
        cos, sin = rotary_angles(self.architecture, inputs.sequence_length, inputs.tokens.device)
        context = AttentionContext(cos, sin)
        # A speech id may lie outside the text table, so it is looked up as 0 there and then replaced.
        text = self.text(inputs.tokens[:, 0].masked_fill(inputs.speech_in, 0).t())
        speech = self._speech(inputs)
        everything = replace_rows(text.flatten(0, 1), inputs.runs.rows, speech).view_as(text)
        embedded = self._shared(everything)
        kept = embedded if self.architecture.residual else None
        if self.architecture.input_adapter_layers == 0:
            return Carrier(inputs, context, embedded, kept)
        if self.architecture.adapter_attention == "published":
            run_context = AttentionContext(cos, sin, mask=published_adapter_mask(inputs.speech_in))
            return Carrier(inputs, context, everything, kept, run_context, embedded)
        positions = (cos.index_select(0, inputs.runs.positions), sin.index_select(0, inputs.runs.positions))
        run_context = AttentionContext(*positions, inputs.runs)
        return Carrier(inputs, context, everything, kept, run_context, self._packed(speech))

    @property
    def speech_tables(self) -> list[nn.Parameter]:
        """K tables [V_s, D]."""
        return [table.weight for table in self.speech]  # type: ignore[misc]

    def _table(self, num_rows: int) -> VocabParallelEmbedding:
        rows, width = padded_vocabulary(num_rows, self.config), self.config.hidden_size
        return VocabParallelEmbedding(rows, width, init_method=None, config=self.config)

    def _speech(self, inputs: ModelInputs) -> Tensor:
        by_row = inputs.tokens.permute(2, 0, 1).flatten(0, 1).index_select(0, inputs.runs.rows)  # [N, K]
        total = self.speech[0](by_row[:, 0])
        for codebook, table in enumerate(self.speech[1:], start=1):
            total = total + table(by_row[:, codebook])
        return total

    def _packed(self, speech: Tensor) -> Tensor:
        """[N, D] to [N', 1, D]: at least one row, so that the adapter computes something, and equally many per rank."""
        size = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
        num_rows = max(1, TensorShare(size=size).padded_rows(len(speech))) * size
        return self._shared(functional.pad(speech, (0, 0, 0, num_rows - len(speech))).unsqueeze(1))

    def _shared(self, states: Tensor) -> Tensor:
        return scatter_to_sequence_parallel_region(states) if self.config.sequence_parallel else states

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the tables."""
        views = {"text.weight": text_table_view(self.architecture)}
        speech = enumerate(speech_table_views(self.architecture))
        return views | {f"speech.{codebook}.weight": view for codebook, view in speech}


def text_table_view(architecture: Architecture, is_copy: bool = False) -> ParameterView:
    """Canonical view of the text table, which text head and embedding share where they are tied."""
    shape = (architecture.text_table_size, architecture.hidden_size)
    return ParameterView(("text_embedding.weight",), (shape,), "backbone", decays=True, dim=0, is_copy=is_copy)


def speech_table_views(architecture: Architecture, is_copy: bool = False) -> list[ParameterView]:
    """Canonical views of the K speech tables, which speech heads and embedding share."""
    shape = (architecture.speech_vocab_size, architecture.hidden_size)
    names = (f"speech_embedding.{codebook}.weight" for codebook in range(architecture.num_codebooks))
    return [ParameterView((n,), (shape,), "speech", decays=True, dim=0, is_copy=is_copy) for n in names]
