"""The text tokenizer of a small corpus: byte-level BPE, one file that the `tokenizers` library reads."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tolktrain.config.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly `vocab_size` ids on texts whose words follow a space each; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"the text yields a vocabulary of {tokenizer.get_vocab_size()} ids only;"
            f" ask for at most that many, not {vocab_size}"
        )
    return tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read tokenizer.json of a folder. Raises `UserError` if it is missing or no tokenizer."""
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; a text tokenizer is a folder with this file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises the bare class.
        raise UserError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Ids of the words, each with its leading space, and where each word ends in them."""
    encodings = tokenizer.encode_batch([" " + word for word in words])
    ids = [encoding.ids for encoding in encodings]
    ends = np.cumsum([len(word) for word in ids]).astype(np.uint32)
    return np.concatenate([np.asarray(word, np.uint32) for word in ids]), ends
