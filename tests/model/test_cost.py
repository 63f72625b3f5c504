"""FLOPs against PyTorch's count of a forward pass, cuts against every other cut, and the page that shows both."""

import contextlib
import io
import re
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import pack_carrier
from tolktrain.model.cost.cut import PipelineCut, carried_slices, carrier_bytes, cut_layers, cut_points
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.memory import activation_bytes
from tolktrain.model.cost.work import LayerCost
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.model.transformer import AttentionContext, rotary_angles
from tolktrain_kernels.layer_pooling import pool_layers_plain
from tolktrain_kernels.scored_rows import index_scored
from tolktrain_kernels.speech_adapter import pack_segments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parallelism.md"

Make = Callable[..., Architecture]

LENGTH, RUN = 24, 4
SWITCHES = [
    pytest.param({}, id="as published"),
    pytest.param({"num_layers": 5, "head_dim": 16, "input_adapter_layers": 1, "output_adapter_layers": 3}, id="sizes"),
    pytest.param({"num_codebooks": 2, "tie_text_embeddings": False}, id="two codebooks, untied"),
    pytest.param({"layer_pooling": "static", "residual": False}, id="static"),
    pytest.param({"layer_pooling": "dynamic"}, id="dynamic"),
    pytest.param(
        {"layer_pooling": "none", "residual": False, "input_adapter_layers": 0, "output_adapter_layers": 0},
        id="early fusion",
    ),
]


def periodic(num_mixed: int, num_text: int, codebooks: int) -> ModelInputs:
    """Sequences that alternate between runs of speech and of text, all equally long, and text alone; all scored."""
    rng = np.random.default_rng(0)
    speech = np.zeros((num_mixed + num_text, LENGTH + 1), bool)
    speech[:num_mixed] = np.arange(LENGTH + 1) // RUN % 2 == 0
    tokens = torch.from_numpy(rng.integers(0, 40, (len(speech), codebooks, LENGTH + 1)))
    is_speech = torch.from_numpy(speech)
    targets = tokens[..., 1:].contiguous()
    batch = SimpleNamespace(
        tokens=tokens[..., :-1].contiguous(),
        targets=targets,
        speech_in=is_speech[:, :-1],
        speech_pred=is_speech[:, 1:],
        text_pred=~is_speech[:, 1:],
        segments=pack_segments(is_speech[:, :-1]),
        scored=index_scored(targets, is_speech[:, 1:], ~is_speech[:, 1:]),
        documents=None,
    )
    return ModelInputs.from_batch(batch)


def counted(model: SmolTolk, inputs: ModelInputs) -> list[int]:
    """FLOPs of matrix products in each layer's forward pass, by PyTorch's counter; attention over full squares."""
    found = []
    state: Any = inputs
    # As it is written down.
    plain = mock.patch("tolktrain.model.pooling.pool_layers", lambda *given, **_: pool_layers_plain(*given))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), plain:
        for layer in model.layers.values():
            with FlopCounterMode(display=False) as counter:
                state = layer(state)
            found.append(counter.get_total_flops())
    return found


@pytest.mark.parametrize("changes", SWITCHES)
@pytest.mark.parametrize(("num_mixed", "num_text"), [(3, 0), (2, 2)])
def test_flops_are_those_that_torch_counts(
    architecture: Make, changes: dict[str, Any], num_mixed: int, num_text: int
) -> None:
    sizes = architecture(**changes)
    inputs = periodic(num_mixed, num_text, sizes.num_codebooks)
    mixed = num_mixed / (num_mixed + num_text)
    costs = layer_flops(sizes, LENGTH, speech_share=mixed / 2, pooled_share=mixed, segment_length=RUN)
    positions = LENGTH * inputs.num_sequences

    def with_whole_squares(cost: LayerCost) -> float:
        seen = RUN if cost.kind == "input adapter" else LENGTH
        return positions * (cost.matrices + cost.attention * seen / ((seen + 1) / 2))

    assert [with_whole_squares(cost) for cost in costs] == pytest.approx(counted(SmolTolk(sizes, 0), inputs), rel=1e-12)


def test_the_published_mask_takes_every_position_through_the_adapter(architecture: Make) -> None:
    sizes = architecture(adapter_attention="published")
    cost = layer_flops(sizes, LENGTH, segment_length=RUN)[1]
    inputs = periodic(3, 0, 1)
    assert LENGTH * 3 * cost.flops == counted(SmolTolk(sizes, 0), inputs)[1]


@pytest.mark.parametrize(
    ("changes", "per_position"),
    [
        ({}, 2 * 3 * 64 + 32),  # two averages of three states of width 32, and the residual
        ({"residual": False}, 2 * 3 * 64),
        ({"layer_pooling": "static"}, 3 * 64 + 32),
        ({"layer_pooling": "none", "residual": False}, 0),
    ],
)
def test_additions_count_where_there_is_nothing_else(
    architecture: Make, changes: dict[str, Any], per_position: int
) -> None:
    costs = {cost.kind: cost for cost in layer_flops(architecture(num_codebooks=3, **changes), LENGTH)}
    assert costs["pooling"].elementwise == per_position
    assert costs["embedding"].flops == 32  # two sums of three codebooks, at half of the positions
    assert costs["final norm"].flops == 4 * 32
    assert costs["backbone"].elementwise == costs["heads"].elementwise == 0


@pytest.mark.parametrize("changes", SWITCHES)
def test_the_costs_are_those_of_the_list_of_layers(architecture: Make, changes: dict[str, Any]) -> None:
    sizes = architecture(**changes)
    costs, layers = layer_flops(sizes, LENGTH), list(SmolTolk(sizes, None).layers.values())
    kinds = {
        "Embedding": "embedding",
        "InputAdapterLayer": "input adapter",
        "BackboneLayer": "backbone",
        "FinalNorm": "final norm",
        "LayerPooling": "pooling",
        "OutputAdapterLayer": "output adapter",
        "Heads": "heads",
    }
    assert [cost.kind for cost in costs] == [kinds[type(layer).__name__] for layer in layers]
    seen: set[int] = set()
    for cost, layer in zip(costs, layers, strict=True):
        own = {id(p): p.numel() for p in layer.parameters() if id(p) not in seen}
        seen |= own.keys()
        assert cost.parameters == sum(own.values()), cost.name
    assert [costs[point].name for point in cut_points(sizes)] == [
        *(f"backbone {i}" for i in range(sizes.num_layers)),
        "final norm",
    ]


@pytest.mark.parametrize("changes", SWITCHES)
@pytest.mark.parametrize(("length", "vocabulary"), [(16, 40), (512, 40), (64, 3_000)])
def test_no_other_cut_is_better(architecture: Make, changes: dict[str, Any], length: int, vocabulary: int) -> None:
    sizes = architecture(**{"num_layers": 6, **changes, "text_vocab_size": vocabulary})
    layers = layer_flops(sizes, length)

    def value(bounds: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        largest = max(sum(layer.flops for layer in layers[a:b]) for a, b in pairwise(bounds))
        return largest, sum(carried_slices(sizes, point) for point in bounds[1:-1]), bounds

    for num_stages in range(1, sizes.num_layers + 3):
        cut = cut_layers(sizes, length, num_stages)
        every = [(0, *points, len(layers)) for points in combinations(cut_points(sizes), num_stages - 1)]
        assert cut.bounds == min(every, key=value)
        assert cut.num_stages == num_stages
        assert sum(cut.shares) == pytest.approx(1)


def test_a_large_vocabulary_leaves_fewer_layers_on_the_last_stage(architecture: Make) -> None:
    small, large = (
        cut_layers(architecture(num_layers=12, text_vocab_size=size), 64, 2).bounds[1] for size in (40, 3_000)
    )
    assert small < large


@pytest.mark.parametrize("num_stages", [6, 40, 0, -1])
def test_the_refusal_says_how_many_stages_there_can_be(architecture: Make, num_stages: int) -> None:
    with pytest.raises(UserError) as caught:
        cut_layers(architecture(), LENGTH, num_stages)
    assert str(caught.value) == (
        f"parallel.pipeline_parallel_size {num_stages}: a model of 3 backbone layers can be cut into 1 to 5 stages"
        f" (before each of its layers and before the final norm); use {'5 or fewer' if num_stages > 0 else '1 or more'}"
    )


def test_stages_are_described(architecture: Make) -> None:
    layers = tuple(layer_flops(architecture(), LENGTH))
    shares = PipelineCut((0, 4, 5, 11), layers).shares
    percent = [f"({100 * share:.0f} % of the FLOPs)" for share in shares]
    assert PipelineCut((0, 4, 5, 11), layers).describe() == [
        f"stage 0: embedding, input adapter 0-1, backbone 0 {percent[0]}",
        f"stage 1: backbone 1 {percent[1]}",
        f"stage 2: backbone 2, final norm, pooling, output adapter 0-1, heads {percent[2]}",
    ]
    assert cut_layers(architecture(), LENGTH, 1).describe() == [
        "stage 0: embedding, input adapter 0-1, backbone 0-2, final norm, pooling, output adapter 0-1, heads"
        " (100 % of the FLOPs)"
    ]


@pytest.mark.parametrize(
    ("changes", "slices"),
    [
        ({}, [2, 2, 3, 4]),
        ({"residual": False}, [1, 1, 2, 3]),
        ({"layer_pooling": "none"}, [2, 2, 2, 2]),
        ({"layer_pooling": "none", "residual": False}, [1, 1, 1, 1]),
    ],
)
def test_states_and_residual_travel(architecture: Make, changes: dict[str, Any], slices: list[int]) -> None:
    sizes = architecture(**changes)
    points = cut_points(sizes)
    assert [carried_slices(sizes, point) for point in points] == slices
    inputs = periodic(3, 2, 1)
    layers = list(SmolTolk(sizes, 0).layers.values())
    for point, count in zip(points, slices, strict=True):
        state: Any = inputs
        for layer in layers[:point]:
            state = layer(state)
        packed = pack_carrier(state)
        assert packed.shape == (count, LENGTH, 5, sizes.hidden_size)
        assert packed.nbytes == carrier_bytes(sizes, point, LENGTH, 5, bytes_per_element=4)


@pytest.mark.parametrize("changes", [{}, {"head_dim": 16}, {"num_key_value_heads": 4, "ffn_hidden_size": 96}])
def test_a_layer_keeps_what_is_said_for_the_backward_pass(architecture: Make, changes: dict[str, Any]) -> None:
    sizes = architecture(**changes)
    block = SmolTolk(sizes, 0).layers["3"].block.bfloat16()
    context = AttentionContext(*rotary_angles(sizes, LENGTH, torch.device("cpu")))
    hidden = torch.randn(LENGTH, 2, sizes.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), context.cos, context.sin)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(hidden, context)
    # The norms' inputs are added by hand: the CPU's keep float32 copies, which stand alone in having the width D.
    of_norms = 2 * hidden.nbytes
    others = [
        tensor.untyped_storage().nbytes()
        for place, tensor in kept.items()
        if place not in known
        and place != hidden.untyped_storage().data_ptr()
        and not (tensor.dtype == torch.float32 and tensor.ndim == hidden.ndim and len(tensor) == LENGTH)
    ]
    # PyTorch rotates queries and keys to memory of their own, and values stay in the product. Triton rotates them in
    # the product, and of several queries to a key only these leave it.
    is_grouped = sizes.query_width > sizes.key_width
    of_product = 2 * sizes.key_width + (0 if is_grouped else 2 * sizes.query_width)
    assert of_norms + sum(others) == (activation_bytes(sizes) + of_product) * LENGTH * 2


def test_tensor_ranks_share_activations(architecture: Make) -> None:
    sizes = architecture()
    whole, shared = activation_bytes(sizes), activation_bytes(sizes, tensor_size=2)
    assert whole - shared == (whole - 8 * sizes.hidden_size) / 2
    assert activation_bytes(sizes, tensor_size=2, sequence_parallel=True) == whole / 2
    assert activation_bytes(sizes, 2, recompute=True) == 2 * sizes.hidden_size
    assert activation_bytes(sizes, 2, sequence_parallel=True, recompute=True) == sizes.hidden_size


def test_the_tables_in_the_documentation_are_what_its_commands_print() -> None:
    text = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```\n+((?:\|[^\n]*\n)+)", text, re.DOTALL)
    assert len(programs) == 2
    names: dict[str, Any] = {}
    for program, table in programs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, names)
        assert table.splitlines()[2:] == printed.getvalue().splitlines()
