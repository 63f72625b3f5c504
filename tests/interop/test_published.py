"""The published implementation's own numbers: activations, losses and gradients in float32."""

import pytest
import torch
from published_files import FILES, LOSSES, read

from tolktrain.errors import UserError
from tolktrain.interop.published import gradients, load_published, trace


@pytest.mark.parametrize("name", FILES)
def test_reproduces_the_published_numbers(name: str) -> None:
    kinds, hparams = read(name)
    model = load_published(kinds["weight"], hparams)
    outputs = trace(model, kinds["input"])
    assert set(outputs) == set(kinds["output"])
    for key, expected in kinds["output"].items():
        assert outputs[key].shape == expected.shape, key
        if key in LOSSES:
            torch.testing.assert_close(outputs[key], expected, rtol=1e-5, atol=0, msg=key)
        else:
            torch.testing.assert_close(outputs[key], expected, rtol=0, atol=1e-5, msg=key)
    outputs["loss"].backward()
    found = gradients(model)
    for key, expected in kinds["grad"].items():
        assert found[key].shape == expected.shape
        assert (found[key] - expected).norm() <= 1e-4 * expected.norm(), key


def test_parts_that_do_not_contribute_have_a_gradient_of_zero() -> None:
    kinds, hparams = read("text")
    model = load_published(kinds["weight"], hparams)
    trace(model, kinds["input"])["loss"].backward()
    assert not [name for name, g in gradients(model).items() if name.startswith(("audio_", "layer_")) and g.any()]


def test_prefixed_names_are_accepted() -> None:
    kinds, hparams = read("mixed")
    model = load_published({f"weight.{k}": v for k, v in kinds["weight"].items()}, hparams)
    outputs = trace(model, {f"input.{k}": v for k, v in kinds["input"].items()})
    torch.testing.assert_close(outputs["loss"], kinds["output"]["loss"])


def test_missing_and_unknown_weights_are_named() -> None:
    kinds, hparams = read("mixed")
    weights = dict(kinds["weight"])
    del weights["context_model.norm.weight"]
    with pytest.raises(UserError, match=r"lacks backbone\.norm\.weight"):
        load_published(weights, hparams)
    with pytest.raises(UserError, match="nonsense is no known name"):
        load_published({**kinds["weight"], "nonsense": torch.zeros(1)}, hparams)
    with pytest.raises(UserError, match="metadata lacks 'ffn'"):
        load_published(kinds["weight"], {k: v for k, v in hparams.items() if k != "ffn"})
