"""Text tokenizers: training one on a small corpus, and using any fast tokenizer of Hugging Face."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tolktrain.data.records import LARGEST_VOCABULARY, TextInfo
from tolktrain.errors import UserError
from tolktrain.files.reading import TABLE_BYTES, file_sha256, read_bytes, read_json

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
_LONE_BLANK = re.compile(r"(?<=\S) (?=\S)")
_BLANK_MARK = "\u2581"  # of SentencePiece
_BLANK_AFTER = re.compile(r"\S ")
_ENOUGH_FOR_PROOF = 1000  # ids
# Of these at least one forms no token with what follows it.
_BEFORE = ("\n", "|", "。", "\u2603", "a", "0")
_LARGEST_TOKENIZER = 1 << 29  # bytes; the largest that are published have a tenth
# Files in which a saved tokenizer names its end-of-text token; the first one that does is used.
EOS_FILES = ("tokenizer_config.json", "special_tokens_map.json")


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


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer and its description in dataset.json."""

    tokenizer: Tokenizer
    info: TextInfo


def tokenizer_folder(path: str | Path) -> Path:
    """The local folder of a tokenizer; the files of a hub id are fetched first.

    Raises `UserError` if there is no such folder and the hub has no tokenizer.json either.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=[TOKENIZER_FILE, *EOS_FILES]))
    except Exception as error:  # errors of the hub, the network and invalid names have no common class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"text tokenizer {str(path)!r} is neither a folder nor a tokenizer of the Hugging Face hub that could be"
            f" fetched ({reason}); give a folder with {TOKENIZER_FILE}"
        ) from None


def load_text_tokenizer(path: str | Path) -> TextTokenizer:
    """The tokenizer in a folder or of a hub id, with its end-of-text id, vocabulary size and digest.

    Raises `UserError` if it is missing, not a tokenizer, or has no end-of-text token.
    """
    folder = tokenizer_folder(path)
    tokenizer = load_tokenizer(folder)
    eos = _eos_token(folder, tokenizer)
    eos_id = tokenizer.token_to_id(eos)
    if eos_id is None:
        raise UserError(f"{folder} names the end-of-text token {eos!r}, which {TOKENIZER_FILE} does not hold")
    # Ids may have gaps, so the vocabulary size follows from the largest id, not from their number.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(
            f"{folder / TOKENIZER_FILE} has the id {vocab_size - 1}; at most {LARGEST_VOCABULARY} ids are supported"
        )
    digest = file_sha256(folder / TOKENIZER_FILE)
    return TextTokenizer(tokenizer, TextInfo(vocab_size=vocab_size, eos_id=eos_id, sha256=digest))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read tokenizer.json of a folder, without truncation and padding; special tokens in a text are plain text.

    Raises `UserError` if it is missing or not a tokenizer.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; a text tokenizer is a folder with this file, as save_pretrained of a *fast*"
            " tokenizer of transformers writes it"
        )
    try:
        tokenizer = Tokenizer.from_buffer(read_bytes(path, _LARGEST_TOKENIZER))
    except BaseException as error:  # the library raises plain Exceptions, and a Rust panic is a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # A document that contains "<|endoftext|>" must not end there.
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_words(
    tokenizer: Tokenizer, words: Sequence[str], spaced: Sequence[bool] | None = None
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Ids of the words, each with its leading blank, and the end of each word in them.

    `spaced` says for each word whether a blank precedes it, as none does between Chinese words; None: before each. The
    ids are those of the whole text. If a token spans two words, each word is encoded separately instead. Raises
    `UserError` if a word has no ids, or if the tokenizer puts a blank before a word that has none.
    """
    if not words:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    needs_blank = _first_word_needs_blank(tokenizer)
    blanks = [" " if blank else "" for blank in spaced or [True] * len(words)]
    if not needs_blank:
        blanks[0] = ""
    pieces = [blank + word for blank, word in zip(blanks, words, strict=True)]
    encoding = tokenizer.encode("".join(pieces), add_special_tokens=False)
    ids = np.asarray(encoding.ids, np.uint32)
    ends = _word_ends(np.asarray(encoding.offsets, np.int64).reshape(-1, 2), np.array([len(piece) for piece in pieces]))
    if ends is None:
        encoded = _separately(tokenizer, pieces, needs_blank)
        ids = np.asarray([token for tokens in encoded for token in tokens], np.uint32)
        ends = np.cumsum([len(tokens) for tokens in encoded])
    empty = np.flatnonzero(np.diff(ends, prepend=0) == 0)
    if len(empty):
        raise UserError(f"the word {words[empty[0]]!r} has no text ids; leave it out")
    return ids, ends.astype(np.uint32)


def _separately(tokenizer: Tokenizer, pieces: Sequence[str], needs_blank: bool) -> list[list[int]]:
    """The ids of each word with the blank that it begins with, if any."""
    if needs_blank:
        return [encoding.ids for encoding in tokenizer.encode_batch(list(pieces), add_special_tokens=False)]
    # The tokenizer itself puts a blank before whatever it encodes.
    return [
        _without_blank(tokenizer, piece)
        if place and piece[0] != " "
        else tokenizer.encode(piece.removeprefix(" "), add_special_tokens=False).ids
        for place, piece in enumerate(pieces)
    ]


def _without_blank(tokenizer: Tokenizer, word: str) -> list[int]:
    """The ids of a word inside a text of a tokenizer that puts a blank before each text: those after another one."""
    for before in _BEFORE:
        first = tokenizer.encode(before, add_special_tokens=False).ids
        both = tokenizer.encode(before + word, add_special_tokens=False).ids
        if first and both[: len(first)] == first:
            return both[len(first) :]
    raise UserError(
        f"the text tokenizer cannot encode {word!r} without a blank before it; put blanks between the words"
    )


class SegmentedEncoder:
    """Encodes documents in batches. Long documents are split into segments before a blank, so that memory is bounded.

    If no token of the vocabulary extends over a blank after a word, the ids of a document are those of its words, and
    the ids of frequent words are cached. As a check, the documents of the first batch are also encoded whole; if the
    ids differ, all documents are encoded whole until `restart`.
    """

    def __init__(self, tokenizer: Tokenizer, longest_segment: int = 1 << 20, words_kept: int = 200_000) -> None:
        """Args: longest_segment, in characters; words_kept, the number of words in the cache."""
        self._tokenizer = tokenizer
        self._longest = longest_segment
        self._keeps_blank = _first_word_needs_blank(tokenizer)
        self._between_words = _LONE_BLANK if self._keeps_blank else _blanks_that_are_added_back(tokenizer)
        self._words_kept = words_kept
        self._kept: dict[str, list[int]] = {}
        self._separable = _words_are_encoded_apart(tokenizer)
        self.restart()

    def restart(self) -> None:
        """Clear the cache, so that the following results do not depend on earlier documents."""
        self._kept.clear()
        self._by_word, self._proven = self._separable, False

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, without BOS and EOS."""
        if not self._by_word:
            return self._encode_whole(texts)
        result = [np.concatenate([self._encode_words(part) for part in self._segments(text)]) for text in texts]
        if not self._proven:
            whole = self._encode_whole(texts)
            self._by_word = all(map(np.array_equal, result, whole))
            self._proven = any(len(ids) > _ENOUGH_FOR_PROOF for ids in whole)
            return whole
        return result

    def _encode_whole(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        segments = [list(self._segments(text)) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(
            [segment for parts in segments for segment in parts], add_special_tokens=False
        )
        ids = iter([np.array(encoding.ids, np.uint32) for encoding in encodings])
        return [np.concatenate([next(ids) for _ in parts]) for parts in segments]

    def _encode_words(self, text: str) -> npt.NDArray[np.uint32]:
        first, *words = self._between_words.split(text)
        if self._keeps_blank:
            words = [f" {word}" for word in words]
        unknown = list({word for word in words if word not in self._kept})
        if len(self._kept) + len(unknown) > self._words_kept:
            self._kept.clear()
            unknown = list(set(words))
        encodings = self._tokenizer.encode_batch_fast([first, *unknown], add_special_tokens=False)
        self._kept.update(zip(unknown, (encoding.ids for encoding in encodings[1:]), strict=True))
        ids = chain(encodings[0].ids, chain.from_iterable(map(self._kept.__getitem__, words)))
        return np.fromiter(ids, np.uint32)

    def _last_blank(self, text: str, begin: int, end: int) -> int:
        """Position of the last single blank between two words; `end` if there is none."""
        return max((match.start() for match in self._between_words.finditer(text, begin, end)), default=end)

    def ends_line(self) -> npt.NDArray[np.bool_]:
        """Whether the text of each id ends with a line end."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True).values()
        result = np.zeros(max(vocabulary) + 1, np.bool_)
        for token in vocabulary:
            result[token] = self._tokenizer.decode([token], skip_special_tokens=False).endswith("\n")
        return result

    def _segments(self, text: str) -> Iterator[str]:
        """Segments of the text. A blank between two words begins the next segment, or is added by the tokenizer."""
        begin = 0
        while len(text) - begin > self._longest:
            end = self._last_blank(text, begin + self._longest - self._longest // 8, begin + self._longest)
            yield text[begin:end]
            begin = end if self._keeps_blank or text[end] != " " else end + 1
        yield text[begin:]


def _words_are_encoded_apart(tokenizer: Tokenizer) -> bool:
    """Whether no token contains a blank after other characters, or strips adjacent blanks."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if any(token.lstrip or token.rstrip or " " in token.content for token in added):
        return False
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return not any(_BLANK_AFTER.search(tokenizer.decode([token], skip_special_tokens=False)) for token in ids)


def _blanks_that_are_added_back(tokenizer: Tokenizer) -> re.Pattern[str]:
    """The single blanks between two words that a tokenizer puts before the second word, if that is encoded alone.

    It puts none before the mark that stands for its blanks, and what follows an added token gets one more.
    """
    apart = [_BLANK_MARK, *(token.content for token in tokenizer.get_added_tokens_decoder().values())]
    escaped = [re.escape(content) for content in apart if content]
    after = "".join(f"(?<!{content})" for content in escaped)
    return re.compile(f"{after}{_LONE_BLANK.pattern}(?!{'|'.join(escaped)})")


def _first_word_needs_blank(tokenizer: Tokenizer) -> bool:
    """Whether the first word of a text needs a leading blank to get the ids of a word inside a text.

    SentencePiece adds this blank itself, byte-level BPE does not.
    """
    alone, first, both = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "b", "b a"))
    return bool(both != first + alone)


def _word_ends(offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """The end of each word in tokens with these offsets [N, 2] into the text; None if a token spans two words.

    `lengths` [W] are those of the words with their leading blanks, in characters.
    """
    text_ends = np.cumsum(lengths)
    # A token belongs to the word in which it ends.
    word_of = np.searchsorted(text_ends, offsets[:, 1])
    begins = text_ends - lengths
    if len(word_of) and (int(word_of[-1]) >= len(lengths) or (np.diff(word_of) < 0).any()):
        return None
    if (offsets[:, 0] < begins[word_of]).any():
        return None
    return np.searchsorted(word_of, np.arange(len(lengths)), side="right")


def bos_id(path: str | Path, tokenizer: Tokenizer) -> int | None:
    """Id of the beginning-of-text token that the files of a tokenizer name, None if they name none."""
    token = _named_token(tokenizer_folder(path), "bos_token")
    return None if token is None else tokenizer.token_to_id(token)


def _eos_token(folder: Path, tokenizer: Tokenizer) -> str:
    token = _named_token(folder, "eos_token")
    if token is not None:
        return token
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        return END_OF_TEXT
    raise UserError(
        f'{folder} tells no end-of-text token; add {{"eos_token": "..."}} as {EOS_FILES[0]}, with a token of'
        f" {TOKENIZER_FILE}"
    )


def _named_token(folder: Path, key: str) -> str | None:
    """The special token that the files of a tokenizer name under `key`."""
    for name in EOS_FILES:
        path = folder / name
        if path.is_file():
            token = _read_object(path).get(key)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                return content
    return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it from its source") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; restore it from its source")
    return content
