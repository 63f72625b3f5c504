"""The text tokenizer of the corpus."""

from pathlib import Path

import numpy as np
import pytest

from tolktrain.config.errors import UserError
from tolktrain.prepare.sample.stories import stories
from tolktrain.prepare.text import END_OF_TEXT, encode_words, load_tokenizer, train_tokenizer

TEXTS = tuple(" " + story.text for story in stories(2, 40))


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


def test_missing_and_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
