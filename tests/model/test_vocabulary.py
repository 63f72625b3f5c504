"""Special ids follow those of text and speech, and one class decides where."""

import pytest

from tolktrain.config.model import ModelConfig
from tolktrain.model.architecture import Architecture
from tolktrain.vocabulary import SPECIAL_TEXT_IDS, SpecialIds, Vocabulary

BACKBONE = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "ffn_hidden_size": 8}


def test_special_ids_fill_the_ends_of_both_tables() -> None:
    ids = Vocabulary(text_vocab_size=100, text_eos=3, num_units=50)
    assert {ids.prefix_begin, ids.prefix_end, ids.switch} == set(range(100, ids.text_table_size))
    assert ids.text_table_size == 100 + SPECIAL_TEXT_IDS
    assert {ids.speech_eos, ids.speech_pad} == set(range(50, ids.speech_vocab_size))


@pytest.mark.parametrize("name", [name for name, value in vars(SpecialIds).items() if isinstance(value, property)])
def test_data_and_model_share_them(name: str) -> None:
    """Neither has a definition of its own."""
    model = ModelConfig.model_validate({"backbone": {**BACKBONE, "text_vocab_size": 100}, "speech": {"num_units": 50}})
    assert getattr(Architecture.from_config(model), name) == getattr(Vocabulary(100, 3, 50), name)
    assert name not in vars(Architecture) and name not in vars(Vocabulary)
