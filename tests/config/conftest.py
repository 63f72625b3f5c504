"""A small configuration to break."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tolktrain.config.load import load_config
from tolktrain.errors import UserError

SMALL = """\
run:
  name: small
model:
  backbone:
    hidden_size: 32
    num_layers: 4
    num_attention_heads: 4
    num_key_value_heads: 2
    ffn_hidden_size: 64
    text_vocab_size: 128
data:
  sets:
    stories: {path: stories}
    heldout: {path: heldout}
train:
  global_batch_size: 8
  micro_batch_size: 4
  sequence_length: 64
  stages:
    - name: text
      tokens: 4096
      mixture:
        text: {sets: {stories: 1}}
      learning_rate: 1e-3
    - name: joint
      tokens: 8192
      mixture:
        speech: {sets: {stories: 1}}
        interleaved: {weight: 2, sets: {stories: 1}}
      learning_rate: 1e-3
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file small.yaml in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("small.yaml")
    path.write_text(SMALL)
    return path


@pytest.fixture
def mistakes_of() -> Callable[..., str]:
    """Loads a configuration that must be refused, and gives the message."""

    def load(path: str | Path, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load_config(path, overrides)
        return str(caught.value)

    return load
