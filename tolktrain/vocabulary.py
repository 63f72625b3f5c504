"""The ids of the model: text ids, speech ids, and the special ids that follow them."""

from dataclasses import dataclass, field

from tolktrain.errors import UserError

SPECIAL_TEXT_IDS = 3  # prefix-begin, prefix-end, switch: rows of the text table that are never predicted
ROLE_TOKEN = "<|{}|>"  # name of the special token that begins a turn of a role


class SpecialIds:
    """The special ids, computed from the sizes of the two id spaces."""

    text_vocab_size: int  # V_t, without the special ids
    num_units: int  # speech ids of one codebook, without EOS and PAD
    special_tokens: tuple[str, ...]  # names of further special ids, after the three; never predicted either

    @property
    def prefix_begin(self) -> int:
        """Text-table id before the condition of a prefix task."""
        return self.text_vocab_size

    @property
    def prefix_end(self) -> int:
        """Text-table id between the condition and the target of a prefix task."""
        return self.text_vocab_size + 1

    @property
    def switch(self) -> int:
        """Text-table id at each change of modality in an interleaved sequence."""
        return self.text_vocab_size + 2

    @property
    def text_table_size(self) -> int:
        """Rows of the text table: V_t, the three special ids and the named ones."""
        return self.text_vocab_size + self.num_special_text_ids

    @property
    def num_special_text_ids(self) -> int:
        """Special ids of the text table: the three and the named ones."""
        return SPECIAL_TEXT_IDS + len(self.special_tokens)

    def special_token(self, name: str) -> int:
        """Text-table id of a named special token. Raises `UserError` if the model has no such token."""
        if name not in self.special_tokens:
            known = ", ".join(self.special_tokens) or "none"
            wanted = [*self.special_tokens, name]
            raise UserError(
                f"the model has no special token {name!r} (model.special_tokens: {known}); set model.special_tokens to"
                f" {wanted}, in a new run that begins from the weights of this model (checkpoint.init_from)"
            )
        return self.text_vocab_size + SPECIAL_TEXT_IDS + self.special_tokens.index(name)

    def role_token(self, role: str) -> int:
        """Text-table id that begins a turn of a role. Raises `UserError` if the model has no such token."""
        return self.special_token(ROLE_TOKEN.format(role))

    @property
    def speech_eos(self) -> int:
        """Speech id that ends an utterance, in every codebook."""
        return self.num_units

    @property
    def speech_pad(self) -> int:
        """Speech id where the delay leaves a codebook empty; never scored."""
        return self.num_units + 1

    @property
    def speech_vocab_size(self) -> int:
        """V_s: units, EOS and PAD."""
        return self.num_units + 2


@dataclass(frozen=True)
class Vocabulary(SpecialIds):
    """The text ids and speech ids of sequences."""

    text_vocab_size: int
    text_eos: int
    num_units: int
    num_codebooks: int = 1
    special_tokens: tuple[str, ...] = ()
    # SHA-256 of the tokenizers that gave the ids their meaning; None where they are not known.
    text_tokenizer: str | None = field(default=None, compare=False)
    speech_tokenizer: str | None = field(default=None, compare=False)

    @property
    def tokenizers(self) -> dict[str, str | None]:
        """The tokenizers by modality, as checkpoints record them."""
        return {"text": self.text_tokenizer, "speech": self.speech_tokenizer}
