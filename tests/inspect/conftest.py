"""Hand-made records and a tokenizer whose words can be read."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tolktrain.files.terminal import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for `corpora`

from tolktrain.data.records import Record

WORDS = ("<eos>", "An", "old", "hare", "met", "two", "frogs")


@pytest.fixture
def console() -> Console:
    """A console of 80 columns without colour, whose text `console.file.getvalue()` gives."""
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def printed(console: Console) -> Callable[[], str]:
    """What was printed, without the spaces at the ends of lines."""

    def text() -> str:
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    return text


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """One id per word of WORDS."""
    return Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))


@pytest.fixture
def make_fable() -> Callable[..., Record]:
    """Makes a record of two utterances of three words; each word has two units of 0.2 s at 25 frames per second."""

    def make(aligned: bool = True, text: bool = True) -> Record:
        none = np.zeros(0, np.uint32)
        arrays: dict[str, Any] = {
            "text_ids": np.arange(1, 7, dtype=np.uint32) if text else none,
            "units": np.arange(20, 32, dtype=np.uint16)[:, None],
            "run_lengths": np.full(12, 5, np.uint16),
            "word_text_ends": np.arange(1, 7, dtype=np.uint32) if aligned else none,
            "word_unit_ends": np.arange(2, 14, 2, dtype=np.uint32) if aligned else none,
            "utterance_text_ends": np.array([3, 6], np.uint32) if text else none,
            "utterance_unit_ends": np.array([6, 12], np.uint32),
        }
        return Record(id="fable", source="aesop", **arrays)

    return make
