"""Text without blanks, cut into words where the given words end."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tolktrain.prepare.recordings.align.normalize import Written
from tolktrain.prepare.recordings.align.scripts import clusters, is_punctuation, is_unspaced, without_marks


@dataclass(frozen=True)
class Part:
    """A piece of the text and the given word that it ends with."""

    text: str
    spaced: bool  # whether a blank precedes it
    place: int | None  # of the given word; None: before the first


def merged(parts: Iterable[Part]) -> list[Part]:
    """The words of a text: parts that no blank separates and that end with the same given word are one."""
    words: list[Part] = []
    for part in parts:
        if words and not part.spaced and part.place == words[-1].place:
            words[-1] = Part(words[-1].text + part.text, words[-1].spaced, part.place)
        else:
            words.append(part)
    return words


def cut_verbatim(written: Sequence[Written], given: Sequence[str]) -> list[Part] | None:
    """Each character of a text with the given word that holds it; None if they do not have the same characters.

    Characters are compared without accents and vowel marks, first with their punctuation, then without. Words of
    scripts with blanks are not cut. A combining mark stays with its letter, whichever given word holds it.
    """
    for counted in (_is_visible, _is_heard):
        theirs = [_counted(text, counted) for text in given]
        if "".join(_counted(word.text, counted) for word in written) == "".join(theirs):
            places = iter([place for place, text in enumerate(theirs) for _ in text])
            return list(_parts(written, counted, places))
    return None


def _is_visible(char: str) -> bool:
    return not char.isspace()


def _is_heard(char: str) -> bool:
    return not char.isspace() and not is_punctuation(char)


def _counted(text: str, counted: Callable[[str], bool]) -> str:
    return without_marks("".join(filter(counted, text)))


def _tokens(written: Sequence[Written]) -> Iterator[tuple[str, bool]]:
    """The text between blanks, and whether it begins with one; a lone dash belongs to the word before it."""
    token, spaced = "", True
    for word in written:
        if word.spaced and token:
            yield token, spaced
            token = ""
        spaced = word.spaced if not token else spaced
        token += word.text
    yield token, spaced


def _parts(written: Sequence[Written], counted: Callable[[str], bool], places: Iterator[int]) -> Iterator[Part]:
    place: int | None = None
    for token, spaced in _tokens(written):
        pieces = clusters(token) if any(map(is_unspaced, token)) else [token]
        text = ""  # of the part that is not complete
        opening = True  # what is not heard belongs to the part after it
        for piece in pieces:
            letters = _counted(piece, counted)
            opens = unicodedata.category(piece[0]) in ("Ps", "Pi")
            if text and (letters or opens) and not opening:
                yield Part(text.rstrip(" "), spaced, place)
                text, spaced, opening = "", text.endswith(" "), True
            text += piece
            for _ in letters:
                place = next(places)
            opening = opening and not letters
        yield Part(text, spaced, place)
