"""The sizes and switches that determine a model's parameters and computation."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from tolktrain.config.model import LayerPooling, LoraConfig, LoraPart, LoraTarget, ModelConfig, SpeechConfig
from tolktrain.errors import UserError
from tolktrain.model.llama import RopeScaling, read_llama_config
from tolktrain.vocabulary import SpecialIds

# Of the input adapter: inside speech segments ("runs", a name in checkpoints), or as the reference implementation
# computes it (see published_mask.py).
AdapterAttention = Literal["runs", "published"]


@dataclass(frozen=True)
class Lora:
    """Which matrices get a pair of narrow ones, and of which rank."""

    rank: int
    alpha: float  # the product is multiplied by alpha / rank
    targets: tuple[LoraTarget, ...]
    parts: tuple[LoraPart, ...]

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Architecture(SpecialIds):
    """A SmolTolk (arXiv 2503.06211, section 3): a Llama-family backbone and the speech parts around it."""

    hidden_size: int  # D
    num_layers: int  # L, of the backbone
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int
    text_vocab_size: int  # V_t, without the special ids
    rope_theta: float
    rms_norm_eps: float
    tie_text_embeddings: bool
    initializer_range: float
    num_units: int
    num_codebooks: int  # K
    input_adapter_layers: int
    output_adapter_layers: int
    layer_pooling: LayerPooling
    residual: bool
    rope_scaling: RopeScaling | None = None
    adapter_attention: AdapterAttention = "runs"
    special_tokens: tuple[str, ...] = ()  # further rows of the text table, by name
    lora: Lora | None = None

    @property
    def keeps_states(self) -> bool:
        """Whether the pooling reads the outputs of all layers, not only h_L."""
        return self.layer_pooling != "none"

    @property
    def query_width(self) -> int:
        """Elements of all heads' queries at a position."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Elements of all heads' keys at a position; values have as many."""
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_config(cls, config: ModelConfig) -> "Architecture":
        """The architecture of a configuration; for a named backbone, its config.json is read.

        Raises:
            UserError: the named backbone has no readable config.json or is not of the Llama family.
        """
        more = {"special_tokens": config.special_tokens, "lora": _lora_of(config.lora)}
        speech = _speech_part(config.speech) | more
        if isinstance(config.backbone, str):
            return cls(**read_llama_config(config.backbone), **speech)
        backbone = config.backbone.model_dump()
        head_dim = config.backbone.hidden_size // config.backbone.num_attention_heads
        return cls(**backbone, head_dim=head_dim, **speech)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Architecture":
        """The inverse of `to_dict`.

        Raises:
            UserError: a key is missing or unknown (written by another version).
        """
        values = {"special_tokens": (), "lora": None, **values}  # absent from what was written before there were any
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise UserError(
                f"architecture: keys {sorted(set(values) ^ known)} are missing or unknown;"
                " it was written by another version of tolktrain, use that version, or train a new model"
            )
        scaling, lora = values["rope_scaling"], values["lora"]
        return replace(
            cls(**values),
            rope_scaling=RopeScaling(**scaling) if scaling is not None else None,
            special_tokens=tuple(values["special_tokens"]),
            lora=_lora_of(LoraConfig(**lora)) if lora is not None else None,
        )

    def with_speech(self, config: SpeechConfig) -> "Architecture":
        """The same backbone with the speech parts of a configuration."""
        return replace(self, **_speech_part(config))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; without `lora` if there is none."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name != "lora" or value is not None}

    def difference(self, other: "Architecture") -> list[str]:
        """The differences from the other architecture, each as 'name: ours, theirs'; empty if they are equal."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {ours}, {theirs}" for name, ours, theirs in pairs if ours != theirs]


def _lora_of(config: LoraConfig) -> Lora | None:
    return Lora(config.rank, config.alpha, config.targets, config.parts) if config.rank else None


def _speech_part(speech: SpeechConfig) -> dict[str, Any]:
    return {
        "num_units": speech.num_units,
        "num_codebooks": speech.num_codebooks,
        "input_adapter_layers": speech.input_adapter_layers,
        "output_adapter_layers": speech.output_adapter_layers,
        "layer_pooling": speech.layer_pooling,
        "residual": speech.residual,
    }
