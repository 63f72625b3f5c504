"""Special ids follow those of text and speech, and one class decides where."""

import json

import numpy as np
import pytest
import torch

from tolktrain.config.model import ModelConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.initialization import initial_text_table
from tolktrain.vocabulary import SPECIAL_TEXT_IDS, SpecialIds, Vocabulary

BACKBONE = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "ffn_hidden_size": 8}


def test_special_ids_fill_the_ends_of_both_tables() -> None:
    ids = Vocabulary(text_vocab_size=100, text_eos=3, num_units=50)
    assert {ids.prefix_begin, ids.prefix_end, ids.switch} == set(range(100, ids.text_table_size))
    assert ids.text_table_size == 100 + SPECIAL_TEXT_IDS
    assert {ids.speech_eos, ids.speech_pad} == set(range(50, ids.speech_vocab_size))


def test_named_tokens_follow_the_three() -> None:
    ids = Vocabulary(100, 3, 50, special_tokens=("<|user|>", "<think>", "<|assistant|>"))
    assert (ids.text_table_size, ids.switch) == (106, 102)
    assert [ids.special_token(name) for name in ids.special_tokens] == [103, 104, 105]
    assert (ids.role_token("user"), ids.role_token("assistant")) == (103, 105)
    with pytest.raises(UserError, match=r"no special token '<\|system\|>' .*set model.special_tokens to .*'<\|system"):
        ids.role_token("system")


def test_named_tokens_begin_as_the_mean_word() -> None:
    """The other rows are those of a model without names."""
    shape = {"backbone": {**BACKBONE, "text_vocab_size": 100}}
    plain = Architecture.from_config(ModelConfig.model_validate(shape))
    named = Architecture.from_config(ModelConfig.model_validate({**shape, "special_tokens": ["<|user|>", "<|b|>"]}))
    assert Architecture.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    without, table = initial_text_table(plain, 5), initial_text_table(named, 5)
    assert without.shape == (103, 8) and table.shape == (105, 8)
    assert torch.equal(table[:103], without)
    assert table[103:].numpy() == pytest.approx(np.tile(without[:100].numpy().mean(axis=0), (2, 1)), abs=1e-8)


@pytest.mark.parametrize("names", [["<|a|>", "<|a|>"], [""], ["\n"]])
def test_names_are_unique_and_printable(names: list[str]) -> None:
    with pytest.raises(ValueError, match="one name of printable characters, once"):
        ModelConfig.model_validate({"backbone": {**BACKBONE, "text_vocab_size": 9}, "special_tokens": names})


@pytest.mark.parametrize("name", [name for name, value in vars(SpecialIds).items() if isinstance(value, property)])
def test_data_and_model_share_them(name: str) -> None:
    """Neither has a definition of its own."""
    model = ModelConfig.model_validate({"backbone": {**BACKBONE, "text_vocab_size": 100}, "speech": {"num_units": 50}})
    assert getattr(Architecture.from_config(model), name) == getattr(Vocabulary(100, 3, 50), name)
    assert name not in vars(Architecture) and name not in vars(Vocabulary)
