"""The reference implementation of SmolTolk: its parameter names, and intermediate results to compare with it."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from tolktrain.config.model import LayerPooling
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.carrier import Carrier
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import InputAdapterLayer
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.parameter_layout import load_canonical, parameter_views
from tolktrain.model.pooling import LayerPooling as LayerPoolingLayer
from tolktrain.model.smoltolk import SmolTolk
from tolktrain_kernels.scored_rows import index_scored
from tolktrain_kernels.speech_adapter import pack_segments

ENTROPY_WEIGHT = 0.01  # of the published training runs
_PREFIXES = (
    ("context_model.", "backbone."),
    ("audio_in_layers.", "input_adapter.layers."),
    ("audio_out_layers.", "output_adapter.layers."),
    ("audio_embed.", "speech_embedding."),
    ("txt_embed.", "text_embedding."),
    ("txt_unembed.", "text_head."),
    ("layer_selector.", "pooling.selector."),
    ("layer_weights", "pooling.layer_weights"),
)
POOLING: dict[tuple[bool, bool], LayerPooling] = {
    (False, False): "none",
    (True, False): "static",
    (False, True): "dynamic",
    (True, True): "both",
}


def canonical_name(published: str) -> str:
    """Our name of a published parameter.

    Raises:
        UserError: the name belongs to no part of a SmolTolk.
    """
    for theirs, ours in _PREFIXES:
        if published.startswith(theirs):
            return ours + published[len(theirs) :]
    known = ", ".join(theirs for theirs, _ in _PREFIXES)
    raise UserError(f"published weights: {published} is no known name; they begin with {known}")


def published_name(canonical: str) -> str:
    """The inverse of `canonical_name`."""
    for theirs, ours in _PREFIXES:
        if canonical.startswith(ours):
            return theirs + canonical[len(ours) :]
    raise AssertionError(canonical)


def architecture_of(hparams: Mapping[str, str]) -> Architecture:
    """The architecture described by the metadata of a published reference file.

    Raises:
        UserError: an entry is missing.
    """
    try:
        hidden, heads = int(hparams["hidden"]), int(hparams["heads"])
        switches = (hparams["static_pool"] == "true", hparams["dynamic_pool"] == "true")
        return Architecture(
            hidden_size=hidden,
            num_layers=int(hparams["layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(hparams["kv_heads"]),
            head_dim=hidden // heads,
            ffn_hidden_size=int(hparams["ffn"]),
            text_vocab_size=int(hparams["text_vocab"]),
            rope_theta=float(hparams["rope_theta"]),
            rms_norm_eps=1e-5,
            tie_text_embeddings=True,
            initializer_range=0.02,
            num_units=int(hparams["speech_vocab"]) - 2,
            num_codebooks=int(hparams.get("codebooks", "1")),
            input_adapter_layers=int(hparams["in_layers"]),
            output_adapter_layers=int(hparams["out_layers"]),
            layer_pooling=POOLING[switches],
            residual=hparams["residual"] == "true",
            adapter_attention="published",
        )
    except KeyError as error:
        raise UserError(
            f"published weights: the metadata lacks {error}; expected as in tests/reference/README.md"
        ) from error


def load_published(weights: Mapping[str, Tensor], hparams: Mapping[str, str]) -> SmolTolk:
    """A float32 model in one process from parameters under their published names.

    Args:
        weights: by published name, with or without the prefix "weight.".
        hparams: metadata of a reference file (see tests/reference/README.md).

    Raises:
        UserError: an unknown or missing name, a shape that does not fit, missing metadata.
    """
    model = SmolTolk(architecture_of(hparams), seed=None)
    state = {canonical_name(name.removeprefix("weight.")): tensor for name, tensor in weights.items()}
    if "pooling.layer_weights" in state:
        state["pooling.layer_weights"] = state["pooling.layer_weights"].flatten()
    load_canonical(model, state)
    return model


def gradients(model: SmolTolk) -> dict[str, Tensor]:
    """Gradients under the published names, of those parameters that have one; layer weights as [L, 1, 1, 1]."""
    views = parameter_views(model)
    result: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result.update({published_name(n): part for n, part in views[name].split(parameter.grad).items()})
    if "layer_weights" in result:
        result["layer_weights"] = result["layer_weights"].view(-1, 1, 1, 1)
    return result


def trace(model: SmolTolk, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run the model and give every intermediate result that applies, under the names of tests/reference/README.md.

    Args:
        model: in one process, on any device.
        inputs: `input` [B, K, T] or [B, T] int64 and optionally `target` of that shape, `speech_in`, `speech_pred`,
            `text_pred` [B, T]; also with the prefix "input.". Without masks everything is text, without a target
            nothing is scored.

    Returns:
        `embedded`, `adapted`, `hidden_states`, `text_logits` and so on; `loss` is ready for `backward()`.
    """
    batch = _batch(inputs)
    made = ModelInputs.from_batch(batch, every_sequence=bool(batch.speech_pred.any()))
    carrier, result = _trace_layers(model, made.to(next(model.parameters()).device))
    predicts_speech, is_text = bool(batch.speech_pred.any()), bool(batch.text_pred.any()) or not batch.speech_pred.any()
    if is_text:
        result["text_logits"] = model.heads.text.logits(carrier.hidden.transpose(0, 1))
    if predicts_speech:
        assert carrier.speech_hidden is not None
        result["speech_hidden"] = carrier.speech_hidden.transpose(0, 1)
        logits = [head.logits(result["speech_hidden"]) for head in model.heads.speech]  # type: ignore[operator]
        result["speech_logits"] = torch.stack(logits, dim=1)
    sums = model.heads(carrier)
    positions = 0
    assert carrier.pooled is not None
    if predicts_speech and carrier.pooled.entropy is not None:
        sequences = batch.speech_pred.any(dim=1)
        entropy = carrier.pooled.entropy.transpose(0, 1)[sequences]
        positions = entropy.numel()
        result["entropy"] = entropy.mean()
        sums = sums._replace(entropy=entropy.sum())
    if batch.text_pred.any():
        result["text_nll_sum"] = sums.text_nll
    if predicts_speech:
        result["speech_nll_sum"] = sums.speech_nll
    num_scored = int(batch.text_pred.sum() + batch.speech_pred.sum())
    result["loss"] = loss_from_sums(sums, num_scored, positions, ENTROPY_WEIGHT)
    return result


def _batch(inputs: Mapping[str, Tensor]) -> SimpleNamespace:
    given = {name.removeprefix("input."): tensor for name, tensor in inputs.items()}
    if "input" not in given:
        raise UserError("trace: the inputs lack 'input', token ids [sequences, codebooks, positions]")
    tokens = given["input"]
    tokens = tokens.unsqueeze(1) if tokens.dim() == 2 else tokens
    targets = given.get("target", torch.zeros_like(tokens))
    nothing = torch.zeros(tokens.shape[0], tokens.shape[2], dtype=torch.bool)
    speech_in = given.get("speech_in", nothing).bool()
    targets = (targets.unsqueeze(1) if targets.dim() == 2 else targets).long()
    speech_pred, text_pred = (given.get(name, nothing).bool() for name in ("speech_pred", "text_pred"))
    return SimpleNamespace(
        tokens=tokens.long(),
        targets=targets,
        speech_in=speech_in,
        speech_pred=speech_pred,
        text_pred=text_pred,
        segments=pack_segments(speech_in),
        scored=index_scored(targets, speech_pred, text_pred),
        documents=None,
    )


def _trace_layers(model: SmolTolk, inputs: ModelInputs) -> tuple[Carrier, dict[str, Tensor]]:
    """Everything before the heads, with intermediate results; [T, B, ...] transposed to [B, T, ...]."""
    embedding, *layers = model.trunk
    carrier = embedding(inputs)
    result = {"embedded": carrier.hidden.transpose(0, 1), "adapted": carrier.hidden.transpose(0, 1)}
    outputs: list[Tensor] = []
    for layer in layers:
        if isinstance(layer, LayerPoolingLayer):
            del outputs[-2]  # what went into the final norm is not h_L, what came out of it is
            result["hidden_states"] = torch.stack(outputs).transpose(1, 2)
            result.update(_trace_pooling(layer, outputs, inputs))
        carrier = layer(carrier)
        outputs.append(carrier.output)
        if isinstance(layer, InputAdapterLayer):
            result["adapted"] = outputs.pop().transpose(0, 1)
    return carrier, result


def _trace_pooling(layer: LayerPoolingLayer, outputs: list[Tensor], inputs: ModelInputs) -> dict[str, Tensor]:
    if inputs.scored.num_columns == 0:
        return {}
    pooled = layer.average(outputs, None)
    result: dict[str, Tensor] = {}
    if pooled.static is not None:
        result["static_pooled"] = pooled.static.transpose(0, 1)
    if pooled.probs is not None:
        result["layer_probs"] = pooled.probs.transpose(0, 1)
        result["dynamic_pooled"] = pooled.pooled.transpose(0, 1)
    return result
