"""Parameters counted from the architecture alone, against those of the model."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tolktrain.model.architecture import Architecture
from tolktrain.model.counts import count_by_group
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_text_embeddings": False},
        {"num_codebooks": 3, "layer_pooling": "static"},
        {"layer_pooling": "dynamic", "input_adapter_layers": 0},
        {"layer_pooling": "none", "output_adapter_layers": 0, "residual": False},
    ],
    ids=lambda changes: ",".join(changes) or "defaults",
)
def test_every_group_has_the_models_parameters(
    architecture: Callable[..., Architecture], changes: dict[str, Any]
) -> None:
    sizes = architecture(**changes)
    expected: Counter[str] = Counter()
    for view in parameter_views(SmolTolk(sizes, None)).values():
        if not view.is_copy:
            expected[view.group] += sum(math.prod(shape) for shape in view.shapes)
    assert Counter(count_by_group(sizes)) == expected
    assert count_by_group(sizes)["backbone"] > 0
