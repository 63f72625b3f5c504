"""Configuration of the model: SmolTolk (arXiv 2503.06211, section 3); each part can be switched off."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from tolktrain.config.base import FixedModel, InputPath, Steering, StrictModel

LayerPooling = Literal["none", "static", "dynamic", "both"]
LoraTarget = Literal[
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]
LoraPart = Literal["input_adapter", "backbone", "output_adapter"]


class BackboneConfig(StrictModel):
    """Shape of a backbone that starts from random weights: a Llama-family decoder."""

    hidden_size: FixedModel[int] = Field(gt=0, description="Width of the hidden states.")
    num_layers: FixedModel[int] = Field(gt=0, description="Decoder layers.")
    num_attention_heads: FixedModel[int] = Field(gt=0, description="Query heads.")
    num_key_value_heads: FixedModel[int] = Field(
        gt=0, description="Key and value heads (grouped queries); must divide the query heads."
    )
    ffn_hidden_size: FixedModel[int] = Field(gt=0, description="Width of the gated feed-forward layer.")
    text_vocab_size: FixedModel[int] = Field(gt=0, description="Text ids, without the special ids that are appended.")
    rope_theta: FixedModel[float] = Field(default=100_000.0, gt=0, description="Base of the rotary angles.")
    rms_norm_eps: FixedModel[float] = Field(default=1e-5, gt=0, description="Added to the mean square in RMSNorm.")
    tie_text_embeddings: FixedModel[bool] = Field(
        default=True, description="Whether the text head shares the text table."
    )
    initializer_range: FixedModel[float] = Field(
        default=0.02, gt=0, description="Standard deviation of random weights."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "BackboneConfig":
        mistake = head_mistake(self.hidden_size, self.num_attention_heads, self.num_key_value_heads)
        if mistake is not None:
            raise ValueError(mistake)
        return self


def head_mistake(hidden_size: int, heads: int, key_value_heads: int, head_dim: int | None = None) -> str | None:
    """Why attention cannot be divided into these heads, and the fix; None if it can.

    `head_dim` is the width of a head if it does not follow from the hidden size.
    """
    if head_dim is None and hidden_size % heads:
        fitting = [n for n in range(1, 129) if hidden_size % n == 0 and hidden_size // n % 2 == 0]
        return f"num_attention_heads {heads} does not divide hidden_size {hidden_size}; use one of {fitting}"
    if head_dim is not None and head_dim % 2:
        return f"head_dim {head_dim} cannot be rotated; the width of a head must be even"
    if head_dim is None and hidden_size // heads % 2:
        return (
            f"num_attention_heads {heads} gives heads of width {hidden_size // heads}, which cannot be rotated (the"
            " width must be even); change num_attention_heads or hidden_size"
        )
    if heads % key_value_heads:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        return (
            f"num_key_value_heads {key_value_heads} does not divide num_attention_heads {heads}; use one of {fitting}"
        )
    return None


class SpeechConfig(StrictModel):
    """The speech side of the model."""

    num_units: FixedModel[int] = Field(default=500, gt=0, description="Speech units; EOS and PAD are appended to them.")
    num_codebooks: FixedModel[int] = Field(
        default=1, gt=0, description="Codebooks per frame; codebook k is delayed by k steps."
    )
    input_adapter_layers: FixedModel[int] = Field(
        default=2, ge=0, description="Transformer layers over each speech segment, before the backbone."
    )
    output_adapter_layers: FixedModel[int] = Field(
        default=2, ge=0, description="Causal transformer layers before the speech head."
    )
    layer_pooling: FixedModel[LayerPooling] = Field(
        default="both", description="How backbone layers are averaged for speech prediction."
    )
    residual: FixedModel[bool] = Field(
        default=True, description="Whether the raw embedding is added to the pooled states."
    )
    entropy_weight: Steering[float] = Field(
        default=0.01, ge=0, description="Weight of the bonus for the entropy of the layer selector, in nats."
    )


class LoraConfig(StrictModel):
    """Low-rank updates of the matrices of transformer layers (LoRA, arXiv 2106.09685); see docs/lora.md."""

    rank: FixedModel[int] = Field(default=0, ge=0, description="Rank of the updates; 0 for none.")
    alpha: FixedModel[float] = Field(default=16.0, gt=0, description="The updates are multiplied by alpha / rank.")
    targets: FixedModel[tuple[LoraTarget, ...]] = Field(
        default=get_args(LoraTarget), min_length=1, strict=False, description="Matrices of a layer with an update."
    )
    parts: FixedModel[tuple[LoraPart, ...]] = Field(
        default=get_args(LoraPart), min_length=1, strict=False, description="Parts of the model whose layers have them."
    )


class ModelConfig(StrictModel):
    """The text-speech language model."""

    backbone: FixedModel[Annotated[str | BackboneConfig, InputPath(may_be_hub_id=True)]] = Field(
        description="Folder or hub id of a Llama-family checkpoint, or the shape of a new backbone."
    )
    speech: SpeechConfig = Field(default=SpeechConfig(), description="Adapters, pooling and speech vocabulary.")
    lora: LoraConfig = Field(default=LoraConfig(), description="Low-rank updates, which `trainable: [lora]` trains.")
    special_tokens: FixedModel[tuple[str, ...]] = Field(
        default=(),
        strict=False,
        description="Names of further rows of the text table, such as <|user|>, which begins a turn of the role user;"
        " read, never predicted.",
    )

    @model_validator(mode="after")
    def _special_tokens_are_names(self) -> "ModelConfig":
        for name in self.special_tokens:
            if not name.strip() or not name.isprintable() or self.special_tokens.count(name) > 1:
                raise ValueError(f"special_tokens has {name!r}; give each token one name of printable characters, once")
        return self
