"""Multimodal embedding (SmolTolk, arXiv 2503.06211, section 3.1): one table for text, one per codebook for speech."""

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier, causal_contexts
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.parameter_layout import ParameterView, PipelineLayer, TensorShare
from tolktrain.model.published_mask import published_adapter_mask
from tolktrain.model.transformer import AttentionContext, rotary_angles
from tolktrain.parallel.megatron import (
    TransformerConfig,
    parallel_state,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.speech_adapter import SpeechSegments, embed_tokens, gather_rows, replace_rows


def empty_table(num_rows: int, config: TransformerConfig) -> nn.Parameter:
    """The uninitialized rows of a table on a tensor rank; the same number on every rank."""
    rows = TensorShare(size=config.tensor_model_parallel_size).padded_rows(num_rows)
    return nn.Parameter(torch.empty(rows, config.hidden_size, dtype=config.params_dtype))


class Tables(nn.Module):
    """A table for text and one for each codebook of speech. Takes and returns tensors, so that ZeRO 3's hooks apply.

    Each tensor rank holds the same number of rows of each table.
    """

    def __init__(self, architecture: Architecture, config: TransformerConfig, share: TensorShare) -> None:
        super().__init__()
        self.share = share
        self.kernels = Kernels()
        self.num_codebooks = architecture.num_codebooks
        self.text = empty_table(architecture.text_table_size, config)
        for codebook in range(architecture.num_codebooks):
            self.register_parameter(f"speech_{codebook}", empty_table(architecture.speech_vocab_size, config))

    @property
    def speech(self) -> list[nn.Parameter]:
        """K tables [V_s, D]."""
        return [self.get_parameter(f"speech_{codebook}") for codebook in range(self.num_codebooks)]

    def forward(self, tokens: Tensor, segments: SpeechSegments, num_packed: int) -> tuple[Tensor, Tensor]:
        """Embeddings of ids [M, K]: [M, D], and the packed embeddings of speech, padded with zeros [num_packed, D]."""
        if self.share.size == 1:
            return embed_tokens(tokens, segments, self.text, self.speech, num_packed, self.kernels.backend)
        # Rows of other ranks are zero here, and the sum over all ranks is complete. Speech replaces rows of the text.
        text = self._own(tokens[:, 0].where(segments.places < 0, 0), self.text)
        ids = tokens.index_select(0, segments.rows)
        parts = [self._own(ids[:, codebook], table) for codebook, table in enumerate(self.speech)]
        partial = replace_rows(text, segments.rows, functools.reduce(torch.add, parts))
        embedded = reduce_from_tensor_model_parallel_region(partial)
        packed = gather_rows(embedded, segments.rows)
        return embedded, functional.pad(packed, (0, 0, 0, num_packed - segments.num_positions))

    def text_rows(self, ids: Tensor) -> Tensor:
        """Embeddings of text ids [M]: [M, D] on every tensor rank."""
        return self._complete([self._own(ids, self.text)])

    def speech_rows(self, ids: Tensor) -> Tensor:
        """Embeddings of frames of units [M, K]: [M, D] on every tensor rank."""
        return self._complete([self._own(ids[:, codebook], table) for codebook, table in enumerate(self.speech)])

    def _complete(self, parts: list[Tensor]) -> Tensor:
        partial = functools.reduce(torch.add, parts)
        return partial if self.share.size == 1 else reduce_from_tensor_model_parallel_region(partial)

    def _own(self, ids: Tensor, table: Tensor) -> Tensor:
        if self.share.size == 1:
            return functional.embedding(ids, table)
        rows = ids - self.share.rank * len(table)
        is_own = (rows >= 0) & (rows < len(table))
        return functional.embedding(rows.where(is_own, 0), table) * is_own.unsqueeze(1)


class Embedding(PipelineLayer):
    """Token ids to e [T, B, D]. With several codebooks the embeddings of a frame are summed."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.share = TensorShare(parallel_state.get_tensor_model_parallel_rank(), config.tensor_model_parallel_size)
        self.tables = Tables(architecture, config, self.share)

    def forward(self, inputs: ModelInputs) -> Carrier:
        """Start the carrier: embeddings, packed speech, angles."""
        cos, sin = rotary_angles(self.architecture, inputs.sequence_length, inputs.tokens.device)
        context, output_context = causal_contexts(cos, sin, inputs)
        # At least one row, so that the adapter is always computed, and a multiple of the tensor ranks that split them.
        size = self.share.size if self.config.sequence_parallel else 1
        num_packed = max(1, TensorShare(size=size).padded_rows(inputs.segments.num_positions)) * size
        tokens = inputs.tokens.permute(2, 0, 1).flatten(0, 1)
        everything, speech = self.tables(tokens, inputs.segments, num_packed)
        everything = everything.view(inputs.sequence_length, inputs.num_sequences, -1)
        embedded = self._shared(everything)
        kept = embedded if self.architecture.residual else None
        carrier = Carrier(inputs, context, embedded, kept, output_context=output_context)
        if self.architecture.input_adapter_layers == 0:
            return carrier
        if self.architecture.adapter_attention == "published":
            mask = published_adapter_mask(inputs.speech_in, inputs.documents)
            segment_context = AttentionContext(cos, sin, mask=mask)
            return replace(carrier, hidden=everything, segment_context=segment_context, speech=embedded)
        positions = (cos.index_select(0, inputs.segments.positions), sin.index_select(0, inputs.segments.positions))
        segment_context = AttentionContext(*positions, inputs.segments)
        speech = self._shared(speech.unsqueeze(1))
        return replace(carrier, hidden=everything, segment_context=segment_context, speech=speech)

    def parameters_of_tables(self) -> tuple[nn.Parameter, list[nn.Parameter]]:
        """Of text, and of each codebook of speech."""
        return self.tables.text, self.tables.speech

    def _shared(self, states: Tensor) -> Tensor:
        return scatter_to_sequence_parallel_region(states) if self.config.sequence_parallel else states

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the tables."""
        views = {"tables.text": text_table_view(self.architecture)}
        speech = enumerate(speech_table_views(self.architecture))
        return views | {f"tables.speech_{codebook}": view for codebook, view in speech}

    @classmethod
    def cost(cls, architecture: Architecture, index: int | None, counts: StepCounts) -> LayerCost:
        """Sums of the codebooks' embeddings."""
        width = architecture.hidden_size
        speech = architecture.num_codebooks * architecture.speech_vocab_size * width
        sizes: dict[ParameterGroup, int] = {"backbone": architecture.text_table_size * width, "speech": speech}
        sums = round(counts.speech_positions * (architecture.num_codebooks - 1) * width)
        return LayerCost("embedding", index, sizes, 0, 0, sums)


def text_table_view(architecture: Architecture, is_copy: bool = False) -> ParameterView:
    """Canonical view of the text table, which text head and embedding share if they are tied."""
    shape = (architecture.text_table_size, architecture.hidden_size)
    return ParameterView(
        ("text_embedding.weight",), (shape,), "backbone", "normal", decays=True, dim=0, is_copy=is_copy
    )


def speech_table_views(architecture: Architecture, is_copy: bool = False) -> list[ParameterView]:
    """Canonical views of the K speech tables, which speech heads and embedding share."""
    shape = (architecture.speech_vocab_size, architecture.hidden_size)
    names = (f"speech_embedding.{codebook}.weight" for codebook in range(architecture.num_codebooks))
    return [ParameterView((n,), (shape,), "speech", "normal", decays=True, dim=0, is_copy=is_copy) for n in names]
