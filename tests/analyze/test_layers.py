"""The states of each layer, against what the model computes with them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tolktrain.analyze.layers import layer_names, text_logits, walk
from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import SequenceWriter
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

SIZES = {
    "hidden_size": 16, "num_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "ffn_hidden_size": 24, "text_vocab_size": 30, "rope_theta": 1e4, "rms_norm_eps": 1e-5,
    "tie_text_embeddings": True, "initializer_range": 0.3, "num_units": 20, "num_codebooks": 1,
    "input_adapter_layers": 2, "output_adapter_layers": 2, "layer_pooling": "static", "residual": True,
}  # fmt: skip


def _batch() -> Batch:
    vocabulary, rng = Vocabulary(30, 0, 20), np.random.default_rng(0)
    sequences = []
    for spoken in (False, True):
        writer = SequenceWriter(vocabulary, 12)
        if spoken:
            writer.speech(rng.integers(0, 20, (11, 1)))
        else:
            writer.text(rng.integers(0, 30, 11))
        sequences.append(writer.finish("record", "interleaved"))
    return collate(sequences)


def test_states_are_those_that_the_model_uses() -> None:
    architecture = Architecture(**SIZES)
    model, batch = SmolTolk(architecture, seed=0).eval(), _batch()
    state = canonical_state(model)
    with torch.no_grad():
        state["pooling.layer_weights"].copy_(torch.tensor([0.3, -1.0, 2.0]))
    inputs = ModelInputs.from_batch(batch, every_sequence=True)
    found = {layer.name: layer.hidden for layer in walk(model, inputs)}
    assert list(found) == layer_names(architecture)
    assert list(found) == ["embedding", "input adapter", "layer 1", "layer 2", "layer 3", "pooled", "output adapter"]
    text, speech = batch.tokens[0, 0], batch.tokens[1, 0]
    torch.testing.assert_close(found["embedding"][:, 0], state["text_embedding.weight"][text])
    torch.testing.assert_close(found["embedding"][:11, 1], state["speech_embedding.0.weight"][speech[:11]])
    assert torch.equal(found["input adapter"][:, 0], found["embedding"][:, 0])
    assert not torch.allclose(found["input adapter"][:11, 1], found["embedding"][:11, 1])
    shares = functional.softmax(torch.tensor([0.3, -1.0, 2.0]), dim=0)
    average = sum(share * found[f"layer {number + 1}"] for number, share in enumerate(shares))
    torch.testing.assert_close(found["pooled"], average + found["embedding"])
    carrier = model.carry(inputs)
    torch.testing.assert_close(found["output adapter"], carrier.speech_hidden)
    read = text_logits(model, "layer 3", found["layer 3"][:11, 0])
    torch.testing.assert_close(read[: inputs.scored.num_text], model.heads.text_logits(carrier))
    # Earlier layers pass through the final norm.
    raw = found["layer 1"][0, :1]
    normed = raw / (raw.square().mean() + 1e-5).sqrt() * state["backbone.norm.weight"]
    torch.testing.assert_close(text_logits(model, "layer 1", raw), normed @ state["text_embedding.weight"][:30].T)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"input_adapter_layers": 0, "output_adapter_layers": 0}, ["embedding", "layer 2", "pooled"]),
        ({"layer_pooling": "none", "residual": False}, ["embedding", "input adapter", "layer 2", "output adapter"]),
    ],
)
def test_parts_that_are_switched_off_have_no_states(switches: dict, expected: list[str]) -> None:
    architecture = Architecture(**(SIZES | switches))
    assert layer_names(architecture, [2]) == expected
    seen = [layer.name for layer in walk(SmolTolk(architecture, 0), ModelInputs.from_batch(_batch(), True))]
    assert set(expected) <= set(seen)


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="no backbone layer 4; the layers are 1 to 3"):
        layer_names(Architecture(**SIZES), [1, 4])
