"""Languages without blanks: given times cut the text into their words, and the ids of the words are those of it."""

import unicodedata
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from tolktrain.data.text_tokenizer import encode_words, train_tokenizer
from tolktrain.prepare.recordings.align.ctc import _words
from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.recordings.align.normalize import letters, spoken_words
from tolktrain.prepare.utterances import Aligned, EntryError, Word

# Characters with their marks, so that any cut between them is one between letters.
CHARACTERS = {
    "zh": [*"今天气很好我用写了代码〇々龍", "２", "Ａ"],
    "ja": [*"今日はいい天気ですねラーメンっょ", "が", "か\u3099", "ｱ", "ｶﾞ"],
    "th": ["ส", "วั", "ดี", "ค", "รั", "บ", "น้ำ", "เ", "ด็", "ก", "ๆ", "๓"],
    "lo": ["ສະ", "ບ", "າ", "ຍ", "ດີ", "ນ້ຳ"],
    "km": ["ខ្ញុំ", "ស្រ", "ឡា", "ញ់", "អ្ន", "ក"],
    "my": ["မ", "င်္", "ဂ", "လာ", "ပါ", "မြ", "န်"],
}
MIXED = [*"abcXYZ0123456789", "é", "ß"]
PUNCTUATION = [*"，。！？、：）」…"]


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """A text without blanks, its words, and these as an aligner writes them: with or without punctuation."""
    letters_of = CHARACTERS[draw(st.sampled_from(sorted(CHARACTERS)))]
    characters = draw(st.lists(st.sampled_from([*letters_of * 2, *MIXED]), min_size=1, max_size=25))
    characters.append(letters_of[0])
    words = [[characters[0]]]
    for character in characters[1:]:
        if draw(st.booleans()):
            words.append([])
        words[-1].append(character)
    plain = ["".join(word) for word in words]
    ends = [draw(st.sampled_from(["", "", *PUNCTUATION])) for _ in plain]
    written = [word + end for word, end in zip(plain, ends, strict=True)]
    given_words = draw(st.sampled_from([written, plain]))
    if draw(st.booleans()):
        given_words = [unicodedata.normalize("NFC", word).lower() for word in given_words]
    return "".join(written), written, given_words


@settings(deadline=None, max_examples=100)
@given(cut_texts())
def test_any_cut_of_a_text_comes_back(cut: tuple[str, list[str], list[str]]) -> None:
    text, written, given_words = cut
    words = [Word(word, i * 0.37, (i + 1) * 0.37) for i, word in enumerate(given_words)]
    aligned = align_given(text, words, "en")
    assert list(aligned.words) == written
    assert aligned.ends.tolist() == [word.end for word in words]
    assert not any(aligned.spaced[1:])
    assert decoded(aligned) == (" " if aligned.spaced[0] else "") + text


@cache
def tokenizer() -> Tokenizer:
    """Its longest tokens span the characters of words."""
    return train_tokenizer(["今天天气很好。我用代码 สวัสดีครับ abc"] * 3, 290)


def decoded(aligned: Aligned) -> str:
    ids, ends = encode_words(tokenizer(), aligned.words, aligned.spaced)
    for number, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        assert tokenizer().decode(ids[begin:end].tolist()).removeprefix(" ") == aligned.words[number]
    return tokenizer().decode(ids.tolist())


def ends_of(text: str | None, words: str, language: str = "en") -> list[tuple[str, int]]:
    given_words = [Word(word, i, i + 1) for i, word in enumerate(words.split())]
    aligned = align_given(text, given_words, language)
    return list(zip(aligned.words, aligned.ends.astype(int).tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("今天天气很好。", "今天 天气 很 好", ["今天 1", "天气 2", "很 3", "好。 4"]),
        ("他说：「你好」（笑）。", "他 说 你好 笑", ["他 1", "说： 2", "「你好」 3", "（笑）。 4"]),
        ("我用 Python3 写", "我 用 Python 3 写", ["我 1", "用 2", "Python3 4", "写 5"]),
        ("我用Python3写", "我 用 Python 3 写", ["我 1", "用 2", "Python 3", "3 4", "写 5"]),
        ("今日は　いい", "今日 は いい", ["今日 1", "は 2", "いい 3"]),
        ("น้ำตก", "น ้ ำ ตก", ["น้ำ 3", "ตก 4"]),
        ("二〇二三年", "二零 二三 年", ["二〇 1", "二三 2", "年 3"]),
        ("增长５０％。", "增长 50 %", ["增长 1", "５０ 2", "％。 3"]),
        ("今天很好", "sil 今天 <unk> 好", ["今天 2", "很 3", "好 4"]),
        ("今天天气好", "今天 <unk> 好", ["今天 1", "天气 2", "好 3"]),
        ("Hello 世界", "hello 世 界", ["Hello 1", "世 2", "界 3"]),
    ],
)
def test_words_of_unspaced_texts(text: str, words: str, expected: list[str]) -> None:
    assert [f"{word} {end}" for word, end in ends_of(text, words)] == expected


def test_numbers_that_are_spoken_out() -> None:
    assert ends_of("3月15日は", "三月 十 五日 は", "ja") == [("3月", 1), ("15日", 3), ("は", 4)]


def test_other_characters_are_named() -> None:
    with pytest.raises(EntryError, match="the text has '天气' where the times have '天器'"):
        ends_of("今天天气很好", "今天 天器 很好")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("今天 天气 很 好", "今天天气很好"),
        ("สวัสดี ครับ", "สวัสดีครับ"),
        ("我 用 New York 的 图", "我用New York的图"),
        ("one two", " one two"),
    ],
)
def test_without_a_text_the_script_decides_on_blanks(words: str, text: str) -> None:
    aligned = align_given(None, [Word(word, i, i + 1) for i, word in enumerate(words.split())], "en")
    assert "".join(" " * spaced + word for word, spaced in zip(aligned.words, aligned.spaced, strict=True)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("مُحَمَّدٌ رَسُولُ اللّٰهِ", "محمد رسول الله"),
        ("محمد", "مُحَمَّد"),
        ("العـــربية", "العربية"),
        ("هٰذا ٱلكتاب", "هذا الكتاب"),
        ("ﻣﺤﻤﺪ", "محمد"),
        ("שָׁלוֹם עוֹלָם", "שלום עולם"),
        ("שלום", "שׁ\u05b8לום"),
    ],
)
def test_vowel_marks_do_not_count(text: str, words: str) -> None:
    assert [end for _, end in ends_of(text, words, "ar")] == list(range(1, len(words.split()) + 1))
    assert [word for word, _ in ends_of(text, words, "ar")] == text.split()


def test_other_letters_still_differ() -> None:
    assert letters(("が",)) != letters(("か",)) and letters(("ب",)) != letters(("ت",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天很好，OK！", ["今", "天", "很", "好，", "OK！"]),
        ("ラーメンを食べちゃった", ["ラー", "メ", "ン", "を", "食", "べ", "ちゃっ", "た"]),
        ("สวัสดีครับ ผมชื่อ", ["สวัสดีครับ", "ผมชื่อ"]),
        ("ខ្ញុំ\u200bស្រឡាញ់", ["ខ្ញុំ\u200b", "ស្រឡាញ់"]),
        ("one two", ["one", "two"]),
    ],
)
def test_words_of_forced_alignment(text: str, expected: list[str]) -> None:
    written = spoken_words(text, "en")
    found = list(_words(written, np.arange(len(written), dtype=float).tolist()))
    assert [word for word, _, _ in found] == expected
    assert "".join(" " * spaced + word for word, spaced, _ in found).strip() == text


def metaspace() -> Tokenizer:
    """A tokenizer that puts a blank before each text itself, as SentencePiece does."""
    texts = ["今天天气很好 我用 abc 写代码", "天天 写写 好我 abc abc 今天天气"] * 3
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>"], show_progress=False))
    return made


@pytest.mark.parametrize("words", ["今 天天 气很 好", "我 用abc 写 代 码", "今天 天 a bc天 气"])
def test_tokenizers_that_put_a_blank_themselves(words: str) -> None:
    made = metaspace()
    pieces = words.split()
    ids, ends = encode_words(made, pieces, [False] * len(pieces))
    assert made.decode(ids.tolist()) == "".join(pieces)
    assert len(ends) == len(pieces) and (np.diff(ends, prepend=0) > 0).all()
    spaced_ids, _ = encode_words(made, pieces, [True, *[number % 2 == 0 for number in range(1, len(pieces))]])
    text = "".join(" " * (number % 2 == 0) + piece for number, piece in enumerate(pieces)).strip()
    assert made.decode(spaced_ids.tolist()) == text
