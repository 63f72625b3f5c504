"""Multimodal embedding (SmolTolk, arXiv 2503.06211, section 3.1): one table for text, one per codebook for speech."""

from torch import Tensor, nn

from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.naming import ParameterView, PipelineLayer
from tolktrain.model.published_mask import published_adapter_mask
from tolktrain.model.transformer import AttentionContext, rotary_angles
from tolktrain.parallel.megatron import TransformerConfig, VocabParallelEmbedding
from tolktrain_kernels.speech_adapter import replace_rows


def _table(num_rows: int, config: TransformerConfig) -> VocabParallelEmbedding:
    return VocabParallelEmbedding(num_rows, config.hidden_size, init_method=None, config=config)


class Embedding(PipelineLayer):
    """Token ids to e [T, B, D]. With several codebooks the embeddings of a frame are summed."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.text = _table(architecture.text_table_size, config)
        tables = (_table(architecture.speech_vocab_size, config) for _ in range(architecture.num_codebooks))
        self.speech = nn.ModuleList(tables)

    def forward(self, inputs: ModelInputs) -> Carrier:
        """Start the carrier: embeddings, packed speech, angles."""
        cos, sin = rotary_angles(self.architecture, inputs.sequence_length, inputs.tokens.device)
        context = AttentionContext(cos, sin)
        # A speech id may lie outside the text table, so it is looked up as 0 there and then replaced.
        text_ids = inputs.tokens[:, 0].masked_fill(inputs.speech_in, 0)
        embedded = self.text(text_ids.t())
        runs = inputs.runs
        if runs.num_positions == 0:
            return Carrier(inputs, context, None, embedded, embedded)
        speech = self._speech(inputs)
        embedded = replace_rows(embedded.flatten(0, 1), runs.rows, speech).view_as(embedded)
        if self.architecture.adapter_attention == "published":
            mask = published_adapter_mask(inputs.speech_in)
            return Carrier(inputs, context, AttentionContext(cos, sin, mask=mask), embedded, embedded, embedded)
        positions = (cos.index_select(0, runs.positions), sin.index_select(0, runs.positions))
        return Carrier(inputs, context, AttentionContext(*positions, runs), embedded, embedded, speech.unsqueeze(1))

    @property
    def speech_tables(self) -> list[nn.Parameter]:
        """K tables [V_s, D]."""
        return [table.weight for table in self.speech]  # type: ignore[misc]

    def _speech(self, inputs: ModelInputs) -> Tensor:
        by_row = inputs.tokens.permute(2, 0, 1).flatten(0, 1).index_select(0, inputs.runs.rows)  # [N, K]
        total = self.speech[0](by_row[:, 0])
        for codebook, table in enumerate(self.speech[1:], start=1):
            total = total + table(by_row[:, codebook])
        return total

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the tables."""
        sizes, width = self.architecture, self.architecture.hidden_size
        views = {
            "text.weight": ParameterView(
                ("text_embedding.weight",), ((sizes.text_table_size, width),), "backbone", decays=True
            )
        }
        shape = (sizes.speech_vocab_size, width)
        for k in range(sizes.num_codebooks):
            views[f"speech.{k}.weight"] = ParameterView(
                (f"speech_embedding.{k}.weight",), (shape,), "speech", decays=True
            )
        return views
