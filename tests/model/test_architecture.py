"""Architectures from configurations and to JSON and back."""

import json
from collections.abc import Callable

import pytest

from tolktrain.config.model import BackboneConfig, ModelConfig, SpeechConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.llama import RopeScaling

MakeArchitecture = Callable[..., Architecture]


def test_from_config() -> None:
    backbone = BackboneConfig(
        hidden_size=192,
        num_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        ffn_hidden_size=512,
        text_vocab_size=1024,
    )
    found = Architecture.from_config(ModelConfig(backbone=backbone, speech=SpeechConfig(num_codebooks=2)))
    assert (found.head_dim, found.text_table_size, found.speech_vocab_size) == (32, 1027, 502)
    assert (found.speech_eos, found.speech_pad, found.num_codebooks) == (500, 501, 2)
    assert found.layer_pooling == "both"
    assert found.adapter_attention == "runs"


def test_survives_json(architecture: MakeArchitecture) -> None:
    for sizes in (architecture(), architecture(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))):
        assert Architecture.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes
    with pytest.raises(UserError, match="another version"):
        Architecture.from_dict({"hidden_size": 3})


def test_difference(architecture: MakeArchitecture) -> None:
    assert architecture().difference(architecture()) == []
    assert architecture().difference(architecture(num_layers=5, residual=False)) == [
        "num_layers: 3, 5",
        "residual: True, False",
    ]
