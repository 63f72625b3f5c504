"""Numbers of transcripts: words, repetition (auto-BLEU) and errors of words (WER)."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

AUTO_BLEU_ORDER = 2
"""n of the n-grams, as in slamkit; GSLM combines 1 and 2."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: letters, digits and inner apostrophes, without punctuation."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def auto_bleu(words: Sequence[str], order: int = AUTO_BLEU_ORDER) -> float:
    """The share of the n-grams of a text that occur in it more than once; 0 if it has none.

    auto-BLEU of Lakhotia et al. 2021 (arXiv 2102.01192, section 3.3): sum over the n-grams s of the text of 1[s occurs
    in the rest of the text], divided by their number. High values mean that the text repeats itself.
    """
    grams = [tuple(words[place : place + order]) for place in range(len(words) - order + 1)]
    if not grams:
        return 0.0
    counts = Counter(grams)
    return sum(count for count in counts.values() if count > 1) / len(grams)


def word_edits(reference: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest substitutions, deletions and insertions of words that turn one text into the other (Levenshtein)."""
    places = {word: place for place, word in enumerate(dict.fromkeys([*reference, *heard]))}
    target = np.array([places[word] for word in heard], np.int64)
    steps = np.arange(len(heard) + 1)
    row = steps.copy()
    for word in reference:
        best = np.empty_like(row)
        best[0] = row[0] + 1
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (target != places[word]))
        # An insertion costs one per word: a running minimum of what is left after that cost.
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])
