"""SmolTolk, a text-speech language model (arXiv 2503.06211), for Hugging Face transformers 4.57 and 5.

This file needs torch and transformers only. `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`
loads it. Token ids of text and speech are separate: `speech_mask` says which positions are speech. After the V_t ids of
the text tokenizer, the text table holds prefix-begin (V_t), prefix-end (V_t + 1), switch (V_t + 2) and the named
special tokens (`config.special_token_id("<|user|>")`), none of which is predicted. Speech has the ids of the units, EOS
(num_units) and PAD (num_units + 1). With K codebooks, codebook k of a frame is k positions later,
and PAD fills the corners of a speech segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class SmolTolkConfig(PretrainedConfig):
    """Sizes and switches of the model."""

    model_type = "smoltolk"

    def __init__(
        self,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        num_key_value_heads: int = 2,
        head_dim: int = 32,
        intermediate_size: int = 128,
        vocab_size: int = 256,  # V_t, without the special ids
        rotary_base: float = 10_000.0,
        rotary_scaling: dict[str, float] | None = None,  # of Llama 3
        rms_norm_eps: float = 1e-5,
        tie_text_embeddings: bool = True,
        initializer_range: float = 0.02,
        num_units: int = 500,
        num_codebooks: int = 1,
        input_adapter_layers: int = 2,
        output_adapter_layers: int = 2,
        layer_pooling: str = "both",  # none, static, dynamic or both
        residual: bool = True,
        special_tokens: Sequence[str] = (),  # names of further rows of the text table
        **others: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        self.rms_norm_eps = rms_norm_eps
        self.tie_text_embeddings = tie_text_embeddings
        self.initializer_range = initializer_range
        self.num_units = num_units
        self.num_codebooks = num_codebooks
        self.input_adapter_layers = input_adapter_layers
        self.output_adapter_layers = output_adapter_layers
        self.layer_pooling = layer_pooling
        self.residual = residual
        self.special_tokens = list(special_tokens)
        # Tables are shared by the model itself, as the text table has rows that are never predicted.
        super().__init__(**{**others, "tie_word_embeddings": False})

    @property
    def switch_token_id(self) -> int:
        """Text id at each change of modality."""
        return self.vocab_size + 2

    @property
    def text_table_size(self) -> int:
        """Rows of the text table: V_t and the special ids."""
        return self.vocab_size + 3 + len(self.special_tokens)

    def special_token_id(self, name: str) -> int:
        """Text id of a named special token. Raises ValueError if there is none of this name."""
        if name not in self.special_tokens:
            raise ValueError(f"the model has no special token {name!r}; it has {self.special_tokens}")
        return self.vocab_size + 3 + self.special_tokens.index(name)

    @property
    def speech_eos(self) -> int:
        """Speech id that ends an utterance."""
        return self.num_units

    @property
    def speech_pad(self) -> int:
        """Speech id where the delay of codebooks leaves a gap."""
        return self.num_units + 1


@dataclass
class SmolTolkOutput(ModelOutput):
    """Logits of the token after each position, in both modalities."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # [B, T, V_t] as text
    speech_logits: Tensor | None = None  # [B, K, T, V_s] as speech
    layer_probs: Tensor | None = None  # [B, T, L] weights of the layers, with a selector


class SmolTolkCache:
    """Keys and values of all layers, by their place; and what a position to be added needs to know."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[Tensor, Tensor]] = {}
        self.speech_mask: Tensor | None = None  # bool [B, T] of the positions so far

    def add(self, name: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, G, t, d]; everything so far."""
        if name in self.states:
            old = self.states[name]
            keys, values = torch.cat((old[0], keys), dim=2), torch.cat((old[1], values), dim=2)
        self.states[name] = keys, values
        return keys, values


class SmolTolkNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps).to(hidden.dtype)


class SmolTolkAttention(nn.Module):
    """Attention with rotated queries and keys, and grouped queries."""

    def __init__(self, config: SmolTolkConfig) -> None:
        super().__init__()
        width, dim = config.hidden_size, config.head_dim
        self.dim = dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, width, bias=False)

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, cache: Any, name: str) -> Tensor:
        """[B, t, D] to [B, t, D]; mask bool [B or 1, 1, t, T]."""
        parts = (projection(hidden) for projection in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (part.unflatten(-1, (-1, self.dim)).transpose(1, 2) for part in parts)
        query, key = _rotate(query, *angles), _rotate(key, *angles)
        if cache is not None:
            key, value = cache.add(name, key, value)
        grouped = query.shape[1] != key.shape[1]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class SmolTolkFeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: SmolTolkConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        projected: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return projected


class SmolTolkLayer(nn.Module):
    """A decoder layer of the Llama family."""

    def __init__(self, config: SmolTolkConfig) -> None:
        super().__init__()
        self.input_layernorm = SmolTolkNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SmolTolkAttention(config)
        self.post_attention_layernorm = SmolTolkNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SmolTolkFeedForward(config)

    def forward(self, hidden: Tensor, *attention: Any) -> Tensor:
        """[B, t, D] to [B, t, D]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), *attention)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class SmolTolkStack(nn.Module):
    """Layers, with a norm at the end for the backbone."""

    def __init__(self, config: SmolTolkConfig, num_layers: int, has_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SmolTolkLayer(config) for _ in range(num_layers))
        self.norm = SmolTolkNorm(config.hidden_size, config.rms_norm_eps) if has_norm else None

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, cache: Any, name: str) -> list[Any]:
        """The output of each layer, that of the last one after the norm; at least [hidden]."""
        states = []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, angles, mask, cache, f"{name}.{index}")
            states.append(hidden)
        if self.norm is not None:
            states[-1] = self.norm(hidden)
        return states or [hidden]


class SmolTolkPooling(nn.Module):
    """Weighted average of the layers: fixed weights, weights chosen at each position, both, or the last layer."""

    def __init__(self, config: SmolTolkConfig) -> None:
        super().__init__()
        self.layer_weights = self.selector = None
        if config.layer_pooling in ("static", "both"):
            self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers))
        if config.layer_pooling in ("dynamic", "both"):
            self.selector = nn.Linear(config.hidden_size, config.num_hidden_layers)

    def forward(self, states: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """L states [B, t, D] to the average [B, t, D] and the chosen weights [B, t, L]."""
        pooled, probs = states[-1], None
        if self.layer_weights is not None:
            weights = torch.softmax(self.layer_weights.float(), dim=0).to(pooled.dtype)
            pooled = _weighted(weights.unbind(0), states)
        if self.selector is not None:
            probs = torch.softmax(self.selector(pooled).float(), dim=-1)
            chosen = probs.to(pooled.dtype).unsqueeze(-1).unbind(-2)
            pooled = _weighted(chosen, states)
        return pooled, probs


class SmolTolkForCausalLM(PreTrainedModel):
    """The model with its heads. Predicts the next token as text and as speech; the caller chooses."""

    config_class = SmolTolkConfig

    def __init__(self, config: SmolTolkConfig) -> None:
        super().__init__(config)
        width, speech = config.hidden_size, config.num_units + 2
        self.text_embedding = nn.Embedding(config.text_table_size, width)
        self.speech_embedding = nn.ModuleList(nn.Embedding(speech, width) for _ in range(config.num_codebooks))
        self.input_adapter = SmolTolkStack(config, config.input_adapter_layers, False)
        self.backbone = SmolTolkStack(config, config.num_hidden_layers, True)
        self.pooling = SmolTolkPooling(config)
        self.output_adapter = SmolTolkStack(config, config.output_adapter_layers, False)
        self.text_head = None if config.tie_text_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text table."""
        return self.text_embedding

    def get_output_embeddings(self) -> None:
        """None: heads use the tables themselves."""

    def forward(
        self,
        input_ids: Tensor,
        speech_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: SmolTolkCache | None = None,
        **_: Any,
    ) -> SmolTolkOutput:
        """Predict the token after each position.

        Args:
            input_ids: int64 [B, T], or [B, K, T]: a text position holds its id in the first codebook.
            speech_mask: bool [B, T], true for speech; everything is text if not given.
            attention_mask: [B, T]; padding must be at the end.
            labels: int64 [B, T] text ids, -100 where nothing is scored; gives `loss` of the text after each position.
                Positions of speech and special ids are not scored either.
            cache: of earlier positions, to which these are added.
        """
        tokens = input_ids.unsqueeze(1) if input_ids.dim() == 2 else input_ids
        if speech_mask is None:
            speech_mask = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("attention_mask has padding before tokens; pad at the end (padding_side='right')")
        speech_mask = speech_mask.bool()
        embedded = self._embed(tokens, speech_mask)
        earlier = None if cache is None else cache.speech_mask
        known = speech_mask if earlier is None else torch.cat((earlier, speech_mask), dim=1)
        if cache is not None:
            cache.speech_mask = known
        total, new = known.shape[1], tokens.shape[2]
        positions = torch.arange(total - new, total, device=tokens.device)
        angles = _angles(self.config, positions)
        causal = (torch.arange(total, device=tokens.device) <= positions[:, None])[None, None]
        hidden = embedded
        if len(self.input_adapter.layers):
            inside = causal & (_segments(known)[:, None, None, :] == _segments(known)[:, -new:][:, None, :, None])
            adapted = self.input_adapter(embedded, angles, inside, cache, "input_adapter")[-1]
            hidden = torch.where(speech_mask.unsqueeze(-1), adapted, embedded)
        states = self.backbone(hidden, angles, causal, cache, "backbone")
        pooled, probs = self.pooling(states)
        pooled = pooled + embedded if self.config.residual else pooled
        spoken = self.output_adapter(pooled, angles, causal, cache, "output_adapter")[-1]
        tied: Tensor = self.text_embedding.weight[: self.config.vocab_size]
        head: Any = tied if self.text_head is None else self.text_head.weight
        logits = functional.linear(states[-1], head)
        tables: list[Any] = list(self.speech_embedding)
        speech_logits = torch.stack([functional.linear(spoken, table.weight) for table in tables], dim=1)
        loss = None
        if labels is not None:
            scored = labels.masked_fill(speech_mask | (labels >= self.config.vocab_size), -100)
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), scored[:, 1:].flatten())
        return SmolTolkOutput(loss=loss, logits=logits, speech_logits=speech_logits, layer_probs=probs)

    def _embed(self, tokens: Tensor, speech_mask: Tensor) -> Tensor:
        text = self.text_embedding(tokens[:, 0].masked_fill(speech_mask, 0))
        units = tokens.masked_fill(~speech_mask.unsqueeze(1), 0)
        speech = sum(table(units[:, k]) for k, table in enumerate(self.speech_embedding))
        return torch.where(speech_mask.unsqueeze(-1), speech, text)

    @torch.no_grad()
    def log_likelihood(
        self, input_ids: Tensor, speech_mask: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Log-probability of each sequence given its first position, in nats: float32 [B].

        Each token counts in its own modality; special ids, PAD and padding do not count. Arguments as in `forward`.
        """
        tokens = input_ids.unsqueeze(1) if input_ids.dim() == 2 else input_ids
        if speech_mask is None:
            speech_mask = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        out = self(tokens, speech_mask, attention_mask)
        targets, is_speech = tokens[:, :, 1:], speech_mask[:, 1:].bool()
        counts = torch.ones_like(is_speech) if attention_mask is None else attention_mask[:, 1:].bool()
        text = targets[:, 0]
        scored = counts & ~is_speech & (text < self.config.vocab_size)
        total = (_chosen(out.logits[:, :-1], text.where(scored, 0)) * scored).sum(dim=1)
        for k in range(self.config.num_codebooks):
            scored = counts & is_speech & (targets[:, k] != self.config.speech_pad)
            total += (_chosen(out.speech_logits[:, k, :-1], targets[:, k].where(scored, 0)) * scored).sum(dim=1)
        return total

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        units: Tensor | None = None,
        to: str | None = None,
        max_new_tokens: int = 100,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        stop_at_eos: bool = True,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Continue a prompt of text or of units, in text or in speech, with caches.

        Args:
            input_ids: a prompt of text ids, int64 [n] or [1, n]; or
            units: a prompt of speech, int64 [n, K] frames with repeats collapsed, EOS included if it has ended.
            to: "text" or "speech"; the modality of the prompt if not given.
            max_new_tokens: text ids, or frames of units; at least 1.
            do_sample: draw, instead of taking the likeliest id.
            temperature, top_k: of drawing; both above 0.
            stop_at_eos: end after EOS of the modality.
            eos_token_id: EOS of text; that of the configuration if not given.
            generator: of the random numbers, on the CPU.
            attention_mask: as the processor returns it for one text.

        Returns:
            What follows the prompt: text ids [m], or frames of units [m, K]; EOS included.

        Raises:
            ValueError: not exactly one prompt, an unknown modality, several prompts at a time or padding, ids beyond
                the vocabulary, or a limit or a setting of drawing that is too small.
        """
        to = to or ("text" if units is None else "speech")
        if (input_ids is None) == (units is None) or to not in ("text", "speech"):
            raise ValueError('generate takes either input_ids or units; `to` is "text" or "speech"')
        if max_new_tokens < 1 or (do_sample and not (temperature > 0 and top_k >= 1)):
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, temperature {temperature} and top_k {top_k}; expected at least 1,"
                " above 0 and at least 1 (do_sample=False takes the likeliest)"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask has padding; give one prompt at a time, without padding")
        self._check_prompt(input_ids, units)
        columns, is_speech = self._prompt(input_ids, units, to)
        device, cache = self.device, SmolTolkCache()
        tokens = torch.tensor(columns, device=device).t().unsqueeze(0)
        out = self(tokens, torch.tensor([is_speech], device=device), cache=cache)

        def draw(logits: Tensor) -> int:
            logits = logits.float().cpu()
            if not do_sample:
                return int(logits.argmax())
            best, ids = (logits / temperature).topk(min(top_k, int(torch.isfinite(logits).sum())))
            return int(ids[torch.multinomial(torch.softmax(best, dim=-1), 1, generator=generator)])

        if to == "speech":
            prompt = [] if units is None else units.tolist()
            return self._speak(out, cache, prompt, max_new_tokens, stop_at_eos, draw)
        eos = getattr(self.config, "eos_token_id", None) if eos_token_id is None else eos_token_id
        found: list[int] = []
        while True:
            found.append(draw(out.logits[0, -1]))
            if len(found) >= max_new_tokens or (stop_at_eos and found[-1] == eos):
                return torch.tensor(found)
            out = self._add([found[-1]] + [0] * (self.config.num_codebooks - 1), False, cache)

    def _check_prompt(self, input_ids: Any, units: Any) -> None:
        """Raise ValueError unless it is one prompt with known ids."""
        given, most = (input_ids, self.config.text_table_size) if units is None else (units, self.config.num_units + 1)
        shape, num_codebooks = tuple(given.shape), self.config.num_codebooks
        if units is not None and (len(shape) != 2 or shape[1] != num_codebooks):
            raise ValueError(f"units have the shape {shape}; expected [n, {num_codebooks}], one prompt at a time")
        if units is None and len(shape) != 1 and (len(shape) != 2 or shape[0] != 1):
            raise ValueError(f"input_ids have the shape {shape}; expected [n] or [1, n], one prompt at a time")
        if not given.numel() or not 0 <= int(given.min()) <= int(given.max()) < most:
            raise ValueError(f"the prompt must have ids from 0 to {most - 1}; is it of another tokenizer?")

    def _prompt(self, input_ids: Any, units: Any, to: str) -> tuple[list[list[int]], list[bool]]:
        """Columns [K] of a prompt, and which are speech."""
        num_codebooks = self.config.num_codebooks
        below = [0] * (num_codebooks - 1)
        switch = [[self.config.switch_token_id, *below]]
        if units is None:
            text = [[int(token), *below] for token in input_ids.flatten()]
            columns = text + switch if to == "speech" else text
            return columns, [False] * len(columns)
        frames = units.tolist()
        # A segment that is continued ends with its last frame, whose later codebooks are still to come.
        length = len(frames) + (num_codebooks - 1 if to == "text" else 0)
        columns = [
            [frames[t - k][k] if 0 <= t - k < len(frames) else self.config.speech_pad for k in range(num_codebooks)]
            for t in range(length)
        ]
        is_speech = [True] * length
        return (columns + switch, [*is_speech, False]) if to == "text" else (columns, is_speech)

    def _add(self, column: list[int], is_speech: bool, cache: SmolTolkCache) -> Any:
        """Read one more position."""
        tokens = torch.tensor(column, device=self.device).view(1, -1, 1)
        return self(tokens, torch.full((1, 1), is_speech, device=self.device), cache=cache)

    def _speak(self, out: Any, cache: Any, prompt: list[Any], most: int, stop_at_eos: bool, draw: Any) -> Tensor:
        """Add columns [K] to a speech segment; codebook k of frame f is at position f + k.

        EOS is in all codebooks of a frame or in none, and never follows EOS.
        """
        config, begin = self.config, len(prompt)
        eos, pad, num_codebooks = config.speech_eos, config.speech_pad, config.num_codebooks
        frames = [list(frame) for frame in prompt]
        complete = position = begin  # frames, and positions of the segment
        while True:
            column = [pad] * num_codebooks
            frames.append([])
            for k in range(min(num_codebooks, position + 1)):
                frame = position - k
                if frame >= begin:
                    logits = out.speech_logits[0, k, -1].clone()
                    logits[pad] = -torch.inf
                    if k and frames[frame][0] == eos:
                        logits[:eos] = -torch.inf
                    elif k or (frame and frames[frame - 1][0] == eos):
                        logits[eos] = -torch.inf
                    frames[frame].append(draw(logits))
                column[k] = frames[frame][k]
            position += 1
            complete = max(position - num_codebooks + 1, begin)
            ended = stop_at_eos and complete > begin and frames[complete - 1][0] == eos
            if ended or complete - begin >= most:
                return torch.tensor(frames[begin:complete]).view(-1, num_codebooks)
            out = self._add(column, True, cache)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [B, H, t, d]; element i pairs with i + d / 2."""
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def _angles(config: SmolTolkConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [t, d / 2] float32; Llama 3.1's scaling stretches long wavelengths."""
    dim = config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    frequencies = 1.0 / config.rotary_base**exponents
    scaling = config.rotary_scaling
    if scaling is not None:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position"] * frequencies / (2 * torch.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = (1 - kept) * frequencies / scaling["factor"] + kept * frequencies
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def _weighted(weights: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
    """Sum of weight * state."""
    total = weights[0] * states[0]
    for weight, state in zip(weights[1:], states[1:], strict=True):
        total = total + weight * state
    return total


def _segments(speech_mask: Tensor) -> Tensor:
    """A number for each run of positions of one modality: [B, T]."""
    changes = speech_mask[:, 1:] != speech_mask[:, :-1]
    return functional.pad(changes.long().cumsum(dim=1), (1, 0))


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
