"""A plain PyTorch twin of the model, and what tests need to compare with it."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from tolktrain.model.architecture import Architecture
from tolktrain.model.loss import LossSums
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk


def make_model(sizes: Architecture, seed: int = 0) -> SmolTolk:
    """A model whose norms and layer weights are not at their start values, so that they matter."""
    model = SmolTolk(sizes, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


class Twin:
    """SmolTolk written down from the formulas: dense masks, every sequence through every part."""

    def __init__(self, sizes: Architecture, state: dict[str, Tensor]) -> None:
        self.sizes, self.state = sizes, state

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.sizes.rms_norm_eps).sqrt() * self.state[f"{name}.weight"]

    def rotate(self, x: Tensor) -> Tensor:  # [B, H, T, d]
        length, dim = x.shape[-2:]
        angle = torch.arange(length)[:, None] * self.sizes.rope_theta ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    def layer(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        sizes, state = self.sizes, self.state
        normed = self.norm(x, f"{name}.input_layernorm")
        heads = {
            part: (normed @ state[f"{name}.self_attn.{part}_proj.weight"].T)
            .unflatten(-1, (-1, sizes.head_dim))
            .transpose(1, 2)
            for part in "qkv"
        }
        share = sizes.num_attention_heads // sizes.num_key_value_heads
        key, value = (heads[part].repeat_interleave(share, dim=1) for part in "kv")
        scores = self.rotate(heads["q"]) @ self.rotate(key).mT / math.sqrt(sizes.head_dim)
        mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ value
        x = x + mixed.transpose(1, 2).flatten(2) @ state[f"{name}.self_attn.o_proj.weight"].T
        normed = self.norm(x, f"{name}.post_attention_layernorm")
        gate, up = (normed @ state[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        return x + (functional.silu(gate) * up) @ state[f"{name}.mlp.down_proj.weight"].T

    def embed(self, batch: SimpleNamespace) -> Tensor:
        speech = sum(
            self.state[f"speech_embedding.{k}.weight"][batch.tokens[:, k]] for k in range(self.sizes.num_codebooks)
        )
        text = self.state["text_embedding.weight"][batch.tokens[:, 0].masked_fill(batch.speech_in, 0)]
        return torch.where(batch.speech_in[..., None], speech, text)

    def sums(self, batch: SimpleNamespace) -> LossSums:
        sizes, state, speech_in = self.sizes, self.state, batch.speech_in
        embedded = self.embed(batch)
        causal = torch.ones(speech_in.shape[1], speech_in.shape[1], dtype=torch.bool).tril()
        run = (speech_in & ~functional.pad(speech_in, (1, 0))[:, :-1]).cumsum(1)
        own = (run[:, :, None] == run[:, None]) & speech_in[:, :, None] & speech_in[:, None] & causal
        own = (own | torch.eye(len(causal), dtype=torch.bool))[:, None]
        hidden = embedded
        for i in range(sizes.input_adapter_layers):
            hidden = self.layer(hidden, f"input_adapter.layers.{i}", own)
        hidden = torch.where(speech_in[..., None], hidden, embedded)
        states = []
        for i in range(sizes.num_layers):
            hidden = self.layer(hidden, f"backbone.layers.{i}", causal)
            states.append(hidden)
        states[-1] = self.norm(hidden, "backbone.norm")
        speech, entropy = self.pool(torch.stack(states))
        speech = speech + embedded if sizes.residual else speech
        for i in range(sizes.output_adapter_layers):
            speech = self.layer(speech, f"output_adapter.layers.{i}", causal)
        table = state["text_embedding.weight" if sizes.tie_text_embeddings else "text_head.weight"]
        text_nll = self.nll(states[-1] @ table[: sizes.text_vocab_size].T, batch.targets[:, 0], batch.text_pred)
        speech_nll = torch.zeros(())
        for k in range(sizes.num_codebooks):
            scored = batch.speech_pred & (batch.targets[:, k] != sizes.speech_pad)
            speech_nll = speech_nll + self.nll(
                speech @ state[f"speech_embedding.{k}.weight"].T, batch.targets[:, k], scored
            )
        return LossSums(text_nll, speech_nll, entropy[batch.speech_pred.any(1)].sum())

    def pool(self, states: Tensor) -> tuple[Tensor, Tensor]:
        pooled, entropy = states[-1], torch.zeros(states.shape[1:3], dtype=states.dtype)
        if self.sizes.layer_pooling in ("static", "both"):
            pooled = torch.einsum("l,lbtd->btd", self.state["pooling.layer_weights"].softmax(0), states)
        if self.sizes.layer_pooling in ("dynamic", "both"):
            logits = pooled @ self.state["pooling.selector.weight"].T + self.state["pooling.selector.bias"]
            probs = logits.softmax(-1)
            entropy = torch.special.entr(probs).sum(-1)
            pooled = torch.einsum("btl,lbtd->btd", probs, states)
        return pooled, entropy

    @staticmethod
    def nll(logits: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
        return -logits.log_softmax(-1)[scored].gather(-1, targets[scored][:, None]).sum()


def gradients_of(model: SmolTolk) -> dict[str, Tensor]:
    views = parameter_views(model)
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.update(views[name].split(gradient))
    return found
