"""Text tokenizers: the one of a corpus, and those of the families that models come with."""

import copy
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from sample_corpus.stories import stories
from tolktrain.data.text_tokenizer import (
    END_OF_TEXT,
    SegmentedEncoder,
    encode_words,
    load_text_tokenizer,
    load_tokenizer,
    tokenizer_folder,
    train_tokenizer,
)
from tolktrain.errors import UserError

TEXTS = tuple(" " + story.text for story in stories(2, 40))
PIECES = (
    " ",
    " ",
    "  ",
    "\n",
    "\t",
    "the",
    "a",
    "Zoe",
    ".",
    ", ",
    "'s",
    "12345",
    "\u00a0",
    "é",
    "東",
    "</s>",
    "▁",
    "ing",
)


@pytest.mark.transformers
def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 500).to_str() == train_tokenizer(TEXTS, 500).to_str()


def test_words_and_whole_text_give_the_same_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 500)
    for text in TEXTS[:5]:
        words = text.split()
        ids, ends = encode_words(tokenizer, words)
        assert ids.tolist() == tokenizer.encode(text).ids
        assert len(ends) == len(words) and ends[-1] == len(ids)
        starts = [0, *ends[:-1]]
        assert [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, ends, strict=True)] == [
            " " + word for word in words
        ]


def test_any_text_can_be_encoded() -> None:
    tokenizer = train_tokenizer(TEXTS, 500)
    ids, _ = encode_words(tokenizer, ["Zürich", "näively", "\u2603"])
    assert tokenizer.decode(ids.tolist()) == " Zürich näively \u2603"
    assert tokenizer.token_to_id(END_OF_TEXT) == 0 and 0 not in np.asarray(ids)


def test_vocabulary_larger_than_the_text_allows() -> None:
    with pytest.raises(UserError, match="ask for at most that many, not 5000"):
        train_tokenizer(TEXTS, 5000)


@pytest.mark.transformers
def test_missing_and_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path)
    # The second one makes the library's Rust panic.
    panicking = json.loads(Tokenizer(models.BPE()).to_str())
    panicking["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    for content in ({}, panicking):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is not a tokenizer"):
            load_tokenizer(tmp_path)


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _byte_level(*before: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    use_regex = not any(isinstance(step, pre_tokenizers.Split) for step in before)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer)


def smollm() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(individual_digits=True))


def llama3() -> Tokenizer:
    """Its own split, and a BOS that is put before a text unless one asks not to."""
    split = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer = _byte_level(pre_tokenizers.Split(split, "isolated"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def llama2() -> Tokenizer:
    """SentencePiece's BPE as transformers converts it: blanks are replaced by a normalizer, bytes fall back."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "</s>"]
    return _trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False),
    )


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]"]
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False))


def crossing() -> Tokenizer:
    """Merges words: without any splitting, tokens may span several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))


FAMILIES = {
    "smollm": (smollm, " "),
    "llama3": (llama3, " "),
    "llama2": (llama2, ""),
    "unigram": (unigram, ""),
    "wordpiece": (wordpiece, ""),
}


@pytest.mark.transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_words_are_those_of_the_text_in_every_family(family: str) -> None:
    make, blank = FAMILIES[family]
    tokenizer = make()
    for text in TEXTS[:8]:
        words = [*text.split(), "Zürich,", "x-2024", "don't"]
        ids, ends = encode_words(tokenizer, words)
        assert ids.tolist() == tokenizer.encode(blank + " ".join(words), add_special_tokens=False).ids
        assert len(ends) == len(words) and ends[-1] == len(ids) and (np.diff(ends, prepend=0) > 0).all()
        # Each word's ids decode to that word, whatever is around it.
        starts = [0, *ends[:-1]]
        for word, begin, end in zip(words, starts, ends, strict=True):
            said = tokenizer.decode(ids[begin:end].tolist()).replace(" ", "")
            expected = tokenizer.decode(tokenizer.encode(blank + word, add_special_tokens=False).ids).replace(" ", "")
            assert said == expected


def test_a_word_inside_a_text_has_the_same_ids_everywhere() -> None:
    for make, _ in FAMILIES.values():
        ids, ends = encode_words(make(), ["lantern"] * 3)
        first, second, third = np.split(ids, ends[:-1])
        assert first.tolist() == second.tolist() == third.tolist()


def test_tokens_that_span_words_are_not_used() -> None:
    tokenizer = crossing()
    words = TEXTS[0].split()
    ids, ends = encode_words(tokenizer, words)
    assert len(tokenizer.encode(TEXTS[0]).ids) < len(ids), "the text must show what is tested"
    starts = [0, *ends[:-1]]
    assert [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, ends, strict=True)] == [
        " " + word for word in words
    ]


def test_a_word_without_ids() -> None:
    tokenizer = wordpiece()
    with pytest.raises(UserError, match=r"word '\\x07' has no text ids"):
        encode_words(tokenizer, ["a", "\x07", "b"])
    ids, ends = encode_words(tokenizer, [])
    assert len(ids) == len(ends) == 0


def save(tokenizer: Tokenizer, folder: Path, **files: object) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.transformers
def test_end_of_text_vocabulary_and_digest(tmp_path: Path) -> None:
    tokenizer = smollm()
    tokenizer.add_tokens([AddedToken("<extra>")])
    folder = save(tokenizer, tmp_path / "a", tokenizer_config={"eos_token": "</s>", "model_max_length": 8})
    loaded = load_text_tokenizer(folder)
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert (loaded.info.eos_id, loaded.info.vocab_size, loaded.info.sha256) == (1, 401, digest)
    as_object = save(tokenizer, tmp_path / "b", tokenizer_config={"eos_token": {"content": "<s>", "lstrip": False}})
    assert load_text_tokenizer(as_object).info.eos_id == 0
    in_map = save(tokenizer, tmp_path / "c", tokenizer_config={}, special_tokens_map={"eos_token": "<extra>"})
    assert load_text_tokenizer(in_map).info.eos_id == 400
    own = save(train_tokenizer(TEXTS, 300), tmp_path / "d")
    assert load_text_tokenizer(own).info.eos_id == 0 and tokenizer_folder(own) == own


@pytest.mark.transformers
def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=smollm(), eos_token="</s>", bos_token="<s>")
    wrapped.save_pretrained(tmp_path)
    loaded = load_text_tokenizer(tmp_path)
    assert loaded.info.eos_id == wrapped.eos_token_id and loaded.info.vocab_size == len(wrapped)
    assert loaded.tokenizer.encode(TEXTS[0]).ids == wrapped(TEXTS[0])["input_ids"]


def test_a_folder_that_tells_no_end_of_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tells no end-of-text token"):
        load_text_tokenizer(save(smollm(), tmp_path / "a", tokenizer_config={"eos_token": None}))
    with pytest.raises(UserError, match=r"'<end>', which tokenizer.json does not hold"):
        load_text_tokenizer(save(smollm(), tmp_path / "b", tokenizer_config={"eos_token": "<end>"}))
    folder = save(smollm(), tmp_path / "c")
    for content in ("{", "[]"):
        (folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer_config.json is not"):
            load_text_tokenizer(folder)


@pytest.mark.transformers
def test_neither_a_folder_nor_on_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "no-such-owner/no-such-tokenizer"):
        with pytest.raises(UserError, match="neither a folder nor a tokenizer of the Hugging Face hub"):
            load_text_tokenizer(name)


@pytest.mark.transformers
def test_a_hub_id_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(folder)

    folder = save(smollm(), tmp_path / "a", tokenizer_config={"eos_token": "</s>"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_text_tokenizer("owner/name").info.eos_id == 1
    assert asked == [("owner/name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])]


@pytest.mark.transformers
def test_a_loaded_tokenizer_neither_cuts_nor_pads_nor_obeys_the_text(tmp_path: Path) -> None:
    tokenizer = smollm()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    loaded = load_tokenizer(save(tokenizer, tmp_path / "a"))
    assert len(loaded.encode(TEXTS[0]).ids) > 4 and len(loaded.encode(" a").ids) < 4
    quoted = loaded.encode("It says </s> here.").ids
    assert 1 not in quoted and loaded.decode(quoted) == "It says </s> here."


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_of_a_long_document_give_the_ids_of_the_whole(family: str) -> None:
    tokenizer = FAMILIES[family][0]()
    text = "".join(TEXTS)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert [ids.tolist() for ids in SegmentedEncoder(tokenizer, 300).encode([text, "a"])] == [
        whole,
        tokenizer.encode("a", add_special_tokens=False).ids,
    ]


def test_a_document_without_blanks_is_kept_whole() -> None:
    tokenizer = smollm()
    text = "x" * 1000
    (ids,) = SegmentedEncoder(tokenizer, 64).encode([text])
    assert tokenizer.decode(ids.tolist()) == text


def test_ids_that_end_a_line() -> None:
    tokenizer = llama2()
    ends = SegmentedEncoder(tokenizer).ends_line()
    assert [tokenizer.id_to_token(token) for token in np.flatnonzero(ends)] == ["<0x0A>"]
    ends = SegmentedEncoder(smollm()).ends_line()
    assert ends[smollm().encode("\n").ids].all() and ends.sum() < 10


@functools.cache
def made(family: str) -> Tokenizer:
    """The tokenizer of a family; tests must not change it."""
    return {**FAMILIES, "crossing": (crossing, "")}[family][0]()


@functools.cache
def after_texts(family: str, kept: int, proven: bool) -> SegmentedEncoder:
    """An encoder that has encoded its first batch, `TEXTS`. With a long text among them, this proves how others go."""
    encoder, batch = SegmentedEncoder(made(family), words_kept=kept), [*TEXTS, *(["".join(TEXTS)] if proven else [])]
    expected = [made(family).encode(text, add_special_tokens=False).ids for text in batch]
    assert [ids.tolist() for ids in encoder.encode(batch)] == expected
    return encoder


@pytest.mark.parametrize("family", [*FAMILIES, "crossing"])
@given(
    texts=st.lists(st.text() | st.lists(st.sampled_from(PIECES)).map("".join), min_size=1, max_size=3),
    kept=st.sampled_from([2, 200_000]),
    proven=st.booleans(),
)
@example(texts=["<s> 0", "0 </s>", "0 \u2581", "\u2581 0"], kept=200_000, proven=True)  # after what gets a blank more
@settings(max_examples=60)
@pytest.mark.slow
def test_kept_words_give_the_ids_of_the_whole(family: str, texts: list[str], kept: int, proven: bool) -> None:
    tokenizer = made(family)
    encoder = copy.deepcopy(after_texts(family, kept, proven), {id(tokenizer): tokenizer})
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in encoder.encode(texts)] == expected


def test_what_is_encoded_after_a_restart_does_not_depend_on_what_was_before() -> None:
    """A token with a blank at its end: words are never encoded apart, whatever the first batch shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(["a. b. c. d. e. f. g. "] * 9, special)
    encoder = SegmentedEncoder(tokenizer)
    document = "x. y. z. " * 5
    expected = tokenizer.encode(document).ids
    assert encoder.encode(["plain words " * 999])[0].tolist() == tokenizer.encode("plain words " * 999).ids
    assert encoder.encode([document])[0].tolist() == expected
    encoder.restart()
    assert encoder.encode([document])[0].tolist() == expected


def test_a_way_that_gives_other_ids_is_given_up() -> None:
    """A tokenizer that treats the first word of a text in another way than its vocabulary shows."""
    tokenizer = smollm()
    tokenizer.normalizer = normalizers.Replace(Regex(r"^ t"), " T")
    encoder = SegmentedEncoder(tokenizer)
    texts = ["so it was then, " + text for text in TEXTS]
    for _ in range(2):
        found = [ids.tolist() for ids in encoder.encode(texts)]
        assert found == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
