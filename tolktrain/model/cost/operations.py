"""The operations of a micro batch, computed from shapes: what `tolktrain bench --count` counts with Triton's kernels.

Fused kernels move each tensor once. Numbers of passes and launches without another reason are those that were counted
on the null GPU; `tests/plan/test_operations.py` compares both.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tolktrain.cluster.device_models import (
    ATTENTION,
    ATTENTION_BACKWARD,
    MEMORY,
    PRODUCT,
    VOCABULARY_PRODUCT,
    Work,
)
from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain_kernels.cross_entropy import CHUNK_LOGITS, keeps_rows

FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer"
_BF16, _FLOAT32 = 2, 4


@dataclass(frozen=True)
class Operations:
    """Operations of a part of the model in one direction."""

    part: str  # as in the tables of `bench --count`
    direction: str  # `FORWARD` or `BACKWARD`
    work: Work  # of all of them together
    is_recomputed: bool = False  # in the backward pass, with `train.activation_checkpointing`


def micro_batch_operations(
    architecture: Architecture,
    counts: StepCounts,
    trainable: Collection[ParameterGroup],
    tensor_size: int = 1,
    sequence_parallel: bool = False,
) -> list[Operations]:
    """Operations of a tensor rank, forward and backward, without those of the optimizer.

    Args:
        architecture: sizes and switches.
        counts: of the micro batch.
        trainable: groups of parameters that the stage trains.
        tensor_size: tensor ranks, which split the columns of products, heads and the vocabulary.
        sequence_parallel: whether they split the rows of everything else.
    """
    step = _Step(architecture, counts, frozenset(trainable), tensor_size, tensor_size if sequence_parallel else 1)
    return [*step.layers(), *step.others(), *step.text_head(), *step.speech_heads()]


@dataclass(frozen=True)
class _Step:
    architecture: Architecture
    counts: StepCounts
    trainable: frozenset[ParameterGroup]
    tensor: int
    slices: int

    def layers(self) -> Iterator[Operations]:
        """All transformer layers."""
        model, counts = self.architecture, self.counts
        passes = {
            part.kind: (part.to_input, part.to_weights) for part in step_flops(model, counts, self.trainable).parts
        }
        kinds = (
            ("input adapter", model.input_adapter_layers, counts.speech_positions, counts.segment_pairs),
            ("backbone", model.num_layers, counts.positions, counts.causal_pairs),
            ("output adapter", model.output_adapter_layers, counts.predicting_positions, counts.predicting_pairs),
        )
        for kind, layers, rows, pairs in kinds:
            if layers and rows:
                yield from self._layers(kind, layers, rows, pairs, *passes[kind])

    def _layers(
        self, kind: str, layers: int, rows: float, pairs: float, to_input: bool, to_weights: bool
    ) -> Iterator[Operations]:
        model, tensor, has_backward = self.architecture, self.tensor, to_input or to_weights
        prefix = "input adapter " if kind == "input adapter" else ""
        hidden, ffn = model.hidden_size, model.ffn_hidden_size / tensor
        query, key = model.query_width / tensor, model.key_width / tensor

        def both(part: str, forward: Work, backward: Work) -> Iterator[Operations]:
            yield Operations(part, FORWARD, forward, True)
            if has_backward:
                yield Operations(part, BACKWARD, backward)

        for inner, columns in ((hidden, query + 2 * key), (query, hidden), (hidden, 2 * ffn), (ffn, hidden)):
            forward = self._product(PRODUCT, rows, inner, columns, layers)
            backward = self._product(PRODUCT, rows, inner, columns, layers * (int(to_input) + int(to_weights)))
            yield from both(f"{prefix}linears", forward, backward)
        flops, sums = 4.0 * query * pairs * layers, _FLOAT32 * rows * layers * model.num_attention_heads / tensor
        moved = _BF16 * rows * layers * (2 * query + 2 * key)
        # Backward: five products for the two of forward.
        yield from both(
            f"{prefix}attention",
            Work(ATTENTION, moved + sums, flops, launches=layers),
            Work(ATTENTION_BACKWARD, 2 * moved + sums, 2.5 * flops, launches=layers),
        )
        of_all = rows * layers
        # Speech segments are rotated into other memory, and their values copied.
        rotated = 4 * (query + (2 * key if kind == "input adapter" else key))
        for part, forwards, backwards, launches in (
            (
                "gated activation",
                6 * ffn,
                10 * ffn,
                (1, 1),
            ),  # backward: gate, up and what came down, and both gradients
            ("rotation", rotated, 4 * (query + 2 * key), (1, 1)),
            # With the additions before them; backward, also of the gradients of the states that are pooled.
            ("norms", 16 * hidden / self.slices, (18 if model.keeps_states else 16) * hidden / self.slices, (2, 4)),
        ):
            yield from both(
                part,
                Work(MEMORY, of_all * forwards, launches=layers * launches[0]),
                Work(MEMORY, of_all * backwards, launches=layers * launches[1]),
            )

    def others(self) -> Iterator[Operations]:
        """Embedding, pooling, and what is around the heads."""
        model, counts = self.architecture, self.counts
        state = _BF16 * model.hidden_size / self.slices
        trains = bool({"speech", "backbone"} & self.trainable)
        table = 4 * _BF16 * model.text_table_size * model.hidden_size / self.tensor
        yield self._memory("embeddings", FORWARD, 5 * state * counts.positions, 18)
        if model.keeps_states:
            pooled = state * (model.num_layers + 3) * counts.predicting_positions
            yield self._memory("pooling", FORWARD, pooled, 3)
            if trains or "pooling" in self.trainable:
                yield self._memory("pooling", BACKWARD, 2 * pooled, 12)
        if model.keeps_states or model.residual:
            yield self._memory("additions", FORWARD, 7 * state * counts.positions, 4)
        scored = state * (counts.text_scored + counts.speech_scored)
        yield self._memory("scored rows", FORWARD, 3 * scored, 8)
        yield self._memory("rest", FORWARD, 0.0, 14)
        if trains:
            yield self._memory("additions", BACKWARD, 3 * state * counts.positions, 1)
            yield self._memory("scored rows", BACKWARD, 8 * scored, 4)
            yield self._memory("rest", BACKWARD, 0.0, 5)
            gradient = table if "backbone" in self.trainable else 0.0
            yield self._memory("embeddings", BACKWARD, 6 * state * counts.positions + gradient, 36)

    def text_head(self) -> Iterator[Operations]:
        """The loss of text. Its gradients are computed in the forward pass, chunk by chunk."""
        model, rows = self.architecture, self.counts.text_scored
        if not rows:
            return
        ids, hidden = model.text_vocab_size / self.tensor, model.hidden_size
        to_input, to_weights = bool({"speech", "backbone"} & self.trainable), "backbone" in self.trainable
        chunks = max(1, math.ceil(rows * ids / CHUNK_LOGITS["cuda"]))
        product = self._product(VOCABULARY_PRODUCT, rows, hidden, ids, 1 + int(to_input), chunks)
        yield Operations("text head", FORWARD, product)
        passes = 2 if self.tensor == 1 and keeps_rows(model.text_vocab_size) else 3
        yield self._memory("text head", FORWARD, passes * _BF16 * rows * ids, chunks)
        if to_weights:
            moved = _BF16 * rows * (ids + hidden) + 2 * _FLOAT32 * ids * hidden * chunks
            width = min(rows / chunks, ids, hidden)
            yield Operations(
                "text head", FORWARD, Work(VOCABULARY_PRODUCT, moved, 2 * rows * ids * hidden, width, chunks)
            )
        if to_input:
            moved = 2 * _BF16 * rows * hidden + (3 * _BF16 * ids * hidden if to_weights else 0.0)
            yield self._memory("text head", BACKWARD, moved, 3)

    def speech_heads(self) -> Iterator[Operations]:
        """The loss of speech, in one chunk."""
        model, rows = self.architecture, self.counts.speech_scored
        if not rows:
            return
        ids, to_weights = model.speech_vocab_size * model.num_codebooks / self.tensor, "speech" in self.trainable
        yield Operations(
            "speech heads", FORWARD, self._product(PRODUCT, rows, model.hidden_size, ids, 2 + int(to_weights))
        )
        yield self._memory("speech heads", FORWARD, 3 * _BF16 * rows * ids, 2)
        yield self._memory("speech heads", BACKWARD, 2 * _BF16 * rows * model.hidden_size, 3)

    @staticmethod
    def _product(kind: str, rows: float, inner: float, columns: float, times: int, chunks: int = 1) -> Work:
        """`times` products [rows, inner] x [inner, columns], or one of their gradients, with the rows in chunks."""
        moved = _BF16 * (rows * (inner + columns) + chunks * inner * columns)
        width = min(rows / chunks, inner, columns)
        return Work(kind, times * moved, times * 2.0 * rows * inner * columns, width, times * chunks)

    @staticmethod
    def _memory(part: str, direction: str, moved: float, launches: float) -> Operations:
        return Operations(part, direction, Work(MEMORY, moved, launches=launches))
