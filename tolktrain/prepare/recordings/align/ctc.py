"""Forced alignment: the end of each word of a known text, from a CTC model's probabilities of letters.

The Viterbi search is our own. torchaudio, which has one, follows torch by releases that do not always come; the
ctc-segmentation library lets a letter and the blank share a state, so that it also takes paths that spell another text
("a-a" for "a", "a" for "aa"), and works on one utterance at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import AlignmentConfig
from tolktrain.prepare.recordings.align.ctc_model import CtcModel
from tolktrain.prepare.recordings.align.normalize import Written, letters, spoken_words
from tolktrain.prepare.recordings.align.scripts import is_syllable, modifies_syllable
from tolktrain.prepare.recordings.align.spelling import Spelled, Tokens, spell
from tolktrain.prepare.recordings.align.spoken_numbers import Numbers, Spoken
from tolktrain.prepare.utterances import Aligned, EntryError, Reason
from tolktrain.units.base import Samples

if TYPE_CHECKING:
    import torch

# Of the letters and digits of an utterance, those that the model's vocabulary may lack.
LARGEST_UNKNOWN_SHARE = 0.1

# A CTC model emits a letter for a moment while it lasts, then blanks: a word ends somewhere between its last letter's
# emission and the next token. Half of that, and at most this much, is given to the word.
LONGEST_LAG_SECONDS = 0.04

# Readings of a word that are compared by what the model hears.
_MOST_CHOICES = 32

_ZERO_WIDTH_BLANK = "\u200b"
_OPENING = "「『（《〈“‘【(["

# Bytes of choices that a search keeps at a time, and utterances that it treats together.
_SEARCH_BYTES = 1 << 28
_SEARCH_BATCH = 16


def frames_needed(tokens: Tokens) -> int:
    """The fewest frames that spell the tokens: one each, and a blank between equal neighbours."""
    return len(tokens) + int((tokens[1:] == tokens[:-1]).sum())


def best_paths(emissions: "Sequence[torch.Tensor]", tokens: Sequence[Tokens], blank: int) -> list[Tokens]:
    """The likeliest CTC path of each utterance.

    Args:
        emissions: log probabilities [frames, vocabulary], all on one device.
        tokens: ids [n], at least one, without blanks; `frames_needed(tokens)` must not be above the frames.
        blank: id of the blank.

    Returns:
        For each utterance the place of the token of each frame: [frames], -1 where it is the blank.
    """
    order = sorted(range(len(tokens)), key=lambda index: len(emissions[index]))
    paths: dict[int, Tokens] = {}
    for start in range(0, len(order), _SEARCH_BATCH):
        batch = order[start : start + _SEARCH_BATCH]
        found = _search([emissions[index] for index in batch], [tokens[index] for index in batch], blank)
        paths.update(zip(batch, found, strict=True))
    return [paths[index] for index in range(len(tokens))]


@dataclass(frozen=True)
class _Trellis:
    """States 0 to 2n of n tokens are blank, token 0, blank, token 1, ..., blank; padded to the longest of a batch."""

    emissions: "torch.Tensor"  # [T, B, V]
    lengths: "torch.Tensor"  # [B, 1], frames
    ids: "torch.Tensor"  # [B, S], the token or blank of each state
    skip: "torch.Tensor"  # [B, S], 0 where the blank before a token may be left out, else -inf

    def advance(self, scores: "torch.Tensor", start: int, stop: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """From scores [B, 2 + S] before frame `start` to those before `stop`, and the states moved in each frame.

        The first two columns precede the first state. All paths begin in the second of them.
        """
        import torch

        scores = scores.clone()
        moves = torch.empty(stop - start, *self.ids.shape, dtype=torch.uint8, device=scores.device)
        for frame in range(start, stop):
            ways = torch.stack((scores[:, 2:], scores[:, 1:-1], scores[:, :-2] + self.skip))
            best, move = ways.max(0)
            best += self.emissions[frame].gather(1, self.ids)
            within = frame < self.lengths
            scores[:, 2:] = torch.where(within, best, scores[:, 2:])
            scores[:, :2] = -torch.inf
            moves[frame - start] = torch.where(within, move, 0)
        return scores, moves


def _search(emissions: "Sequence[torch.Tensor]", tokens: Sequence[Tokens], blank: int) -> list[Tokens]:
    """Viterbi over a batch. The moves of long waveforms are recomputed piece by piece, so that memory stays bounded."""
    import torch

    trellis = _trellis(emissions, tokens, blank)
    num_frames, (batch, num_states) = len(trellis.emissions), trellis.ids.shape
    piece = max(_SEARCH_BYTES // (batch * num_states), int(num_frames**0.5) + 1)
    # In double precision: over thousands of frames the sums of close paths must stay apart.
    scores = torch.full((batch, num_states + 2), -torch.inf, dtype=torch.float64, device=trellis.ids.device)
    scores[:, 1] = 0
    starts = list(range(0, num_frames, piece))
    before = []
    for start in starts:
        before.append(scores)
        scores, moves = trellis.advance(scores, start, min(start + piece, num_frames))
    last = scores[:, 2:].cpu().numpy()
    state = np.array(
        [2 * len(ids) - int(row[2 * len(ids) - 1] > row[2 * len(ids)]) for ids, row in zip(tokens, last, strict=True)]
    )
    path = np.empty((num_frames, batch), np.int64)
    for place in reversed(range(len(starts))):
        start = starts[place]
        if place < len(starts) - 1:
            _, moves = trellis.advance(before[place], start, starts[place + 1])
        steps = moves.cpu().numpy()
        for frame in reversed(range(len(steps))):
            path[start + frame] = state
            state = state - steps[frame, np.arange(batch), state]
    path = np.where(path % 2 == 1, path // 2, -1)
    return [path[: len(emissions[row]), row] for row in range(batch)]


def _trellis(emissions: "Sequence[torch.Tensor]", tokens: Sequence[Tokens], blank: int) -> _Trellis:
    import torch

    device = emissions[0].device
    num_states = 2 * max(len(ids) for ids in tokens) + 1
    states = np.full((len(tokens), num_states), blank, np.int64)
    skip = np.full((len(tokens), num_states), -np.inf)
    for row, ids in enumerate(tokens):
        states[row, 1 : 2 * len(ids) : 2] = ids
        skip[row, 1 : 2 * len(ids) : 2] = np.where(np.r_[True, ids[1:] != ids[:-1]], 0.0, -np.inf)
    padded = torch.nn.utils.rnn.pad_sequence([rows.double() for rows in emissions])
    lengths = torch.tensor([[len(rows)] for rows in emissions], device=device)
    return _Trellis(padded, lengths, torch.from_numpy(states).to(device), torch.from_numpy(skip).to(device))


def last_frame(path: Tokens, token: int) -> tuple[int, int]:
    """The last frame of a token, and how many blank frames follow it."""
    frame = int(np.flatnonzero(path == token)[-1])
    later = np.flatnonzero(path[frame + 1 :] >= 0)
    return frame, int(later[0]) if len(later) else len(path) - frame - 1


@dataclass(frozen=True)
class _Task:
    """One utterance, ready for the search."""

    place: int  # in the list that was given
    words: list[Written]
    readings: list[Spoken]  # of each word the one that is aligned
    spelled: Spelled


class CtcAligner:
    """Ends of words by CTC forced alignment.

    A word ends where the last frame of its last letter ends, or later by half of the blank frames that follow, at most
    40 ms; longer silence is not its own. The confidence of an utterance is the geometric mean, over its letters, of
    the letter's probability in the frames that it has. Of the ways to say a number, an abbreviation or a sign, the one
    is aligned that the model finds likeliest next to the words around it.
    """

    def __init__(self, config: AlignmentConfig, device: str, batch_seconds: float = 240.0) -> None:
        """Load the model. Raises `UserError` if the model or the language of numbers is not available."""
        assert config.model is not None
        Numbers(config.language).check()
        self._language = config.language
        self._model = CtcModel(config.model, device, batch_seconds)
        self.sample_rate = self._model.sample_rate

    @property
    def digest(self) -> str:
        """sha256 of the model's files."""
        return self._model.digest

    def align(self, waveforms: Sequence[Samples], texts: Sequence[str]) -> list[Aligned | EntryError]:
        """Words and ends of each waveform, mono at `sample_rate`; an error instead where it cannot be aligned."""
        results: dict[int, Aligned | EntryError] = {}
        tasks = []
        for place, (waveform, text) in enumerate(zip(waveforms, texts, strict=True)):
            try:
                tasks.append(self._task(place, waveform, text))
            except EntryError as error:
                results[place] = error
        emissions = self._model.emissions([waveforms[task.place] for task in tasks])
        finite = [bool(rows.isfinite().all()) for rows in emissions]
        for task, fine in zip(tasks, finite, strict=True):
            if not fine:
                results[task.place] = EntryError(Reason.ALIGNMENT, "the model gives no finite probabilities for it")
        good = [(task, rows) for task, rows, fine in zip(tasks, emissions, finite, strict=True) if fine]
        for task, rows, path in self._as_said(good, self._paths(good)):
            results[task.place] = self._aligned(task, rows, path, len(waveforms[task.place]))
        return [results[place] for place in range(len(waveforms))]

    def _paths(self, tasks: "Sequence[tuple[_Task, torch.Tensor]]") -> list[Tokens]:
        return best_paths([rows for _, rows in tasks], [task.spelled.tokens for task, _ in tasks], self._model.blank)

    def _as_said(
        self, tasks: "Sequence[tuple[_Task, torch.Tensor]]", paths: Sequence[Tokens]
    ) -> "Iterator[tuple[_Task, torch.Tensor, Tokens]]":
        """The tasks with the readings that the model finds likeliest, and their paths."""
        changed: list[tuple[_Task, torch.Tensor]] = []
        for (task, rows), path in zip(tasks, paths, strict=True):
            readings = list(task.readings)
            for number, word in enumerate(task.words):
                # A plain word, as the pronoun in "Then I", is not doubted.
                if len(word.readings) > 1 and letters(word.spoken) != letters((word.text.strip(".,;:!?"),)):
                    readings[number] = self._likeliest(task, number, readings, rows, path)
            other = _Task(task.place, task.words, readings, spell(task.words, readings, self._model))
            if readings != task.readings and frames_needed(other.spelled.tokens) <= len(rows):
                changed.append((other, rows))
            else:
                yield task, rows, path
        for (task, rows), path in zip(changed, self._paths(changed), strict=True):
            yield task, rows, path

    def _likeliest(
        self, task: _Task, number: int, readings: Sequence[Spoken], emissions: "torch.Tensor", path: Tokens
    ) -> Spoken:
        """The reading of a word that is likeliest from the word before it to the word after it."""
        first, stop = max(number - 1, 0), min(number + 2, len(task.words))
        begin, end = 0, len(path)
        if first:
            begin = int(np.flatnonzero(path >= task.spelled.first_token(first))[0])
        if stop < len(task.words) and (later := np.flatnonzero(path >= task.spelled.first_token(stop))).size:
            end = int(later[0])
        choices: list[Spoken] = []
        tokens: list[Tokens] = []
        for reading in task.words[number].readings[:_MOST_CHOICES]:
            around = [*readings[first:number], reading, *readings[number + 1 : stop]]
            spelled = spell(task.words[first:stop], around, self._model)
            fits = len(spelled.tokens) > 0 and frames_needed(spelled.tokens) <= end - begin
            if fits and (not spelled.unknown or reading == readings[number]):
                choices.append(reading)
                tokens.append(spelled.tokens)
        if not choices:
            return readings[number]
        rows = emissions[begin:end]
        paths = best_paths([rows] * len(tokens), tokens, self._model.blank)
        table = rows.double().cpu().numpy()
        scores = [_score(table, ids, found, self._model.blank) for ids, found in zip(tokens, paths, strict=True)]
        return choices[int(np.argmax(scores))]

    def _task(self, place: int, waveform: Samples, text: str) -> _Task:
        words = spoken_words(text, self._language)
        if not any(word.spoken for word in words):
            raise EntryError(Reason.TEXT, f"nothing of the text {text.strip()[:40]!r} is spoken")
        readings = [word.spoken for word in words]
        spelled = spell(words, readings, self._model)
        for word, last in zip(words, spelled.last_tokens, strict=True):
            if word.spoken and last is None:
                raise EntryError(Reason.ALIGNMENT, f"the model's vocabulary has no letter of {word.text!r}")
        unknown, letters_in_all = spelled.unknown, spelled.unknown + spelled.known
        if unknown > LARGEST_UNKNOWN_SHARE * letters_in_all:
            raise EntryError(Reason.ALIGNMENT, f"the model's vocabulary lacks {unknown} of {letters_in_all} letters")
        frames, needed = self._model.num_frames(len(waveform)), frames_needed(spelled.tokens)
        if frames < needed:
            raise EntryError(
                Reason.ALIGNMENT, f"the text needs {needed} frames; the audio has {frames}, so it is cut off"
            )
        return _Task(place, words, readings, spelled)

    def _aligned(self, task: _Task, emissions: "torch.Tensor", path: Tokens, num_samples: int) -> Aligned:
        duration = num_samples / self.sample_rate
        ends: list[float] = []
        for last in task.spelled.last_tokens:
            if last is None:
                ends.append(ends[-1] if ends else 0.0)
            else:
                frame, blanks = last_frame(path, last)
                lag = min(blanks / 2 * self._model.stride / self.sample_rate, LONGEST_LAG_SECONDS)
                ends.append(min(self._model.frame_end(frame) + lag, duration))
        parts = list(_words(task.words, ends))
        return Aligned(
            tuple(text for text, _, _ in parts),
            np.array([end for _, _, end in parts], np.float64),
            self._confidence(task, emissions, path),
            tuple(spaced for _, spaced, _ in parts),
        )

    def _confidence(self, task: _Task, emissions: "torch.Tensor", path: Tokens) -> float:
        frames = np.flatnonzero(path >= 0)
        places = path[frames]
        log_probabilities = emissions.cpu().numpy()[frames, task.spelled.tokens[places]].astype(np.float64)
        means = np.bincount(places, log_probabilities) / np.bincount(places)
        return float(np.exp(means[task.spelled.tokens != self._model.delimiter].mean()))


def _score(table: npt.NDArray[np.float64], tokens: Tokens, path: Tokens, blank: int) -> float:
    labels = np.where(path >= 0, tokens[path], blank)
    return float(table[np.arange(len(labels)), labels].sum())


def _words(written: Sequence[Written], ends: Sequence[float]) -> Iterator[tuple[str, bool, float]]:
    """Texts, whether a blank precedes them, and ends.

    Where a script has no blanks, each character that is a syllable is a word, as in Chinese and Japanese. Elsewhere, as
    in Thai, words cannot be known: what no blank, visible or not, divides is one word.
    """
    text, spaced, end = "", True, 0.0
    for word, word_end in zip(written, ends, strict=True):
        begins = word.spaced or text.endswith(_ZERO_WIDTH_BLANK)
        if not begins and word.spoken:
            first = word.text.lstrip(_OPENING)[:1]
            begins = is_syllable(first) or (any(map(is_syllable, text)) and not modifies_syllable(first))
        if begins and text:
            yield text, spaced, end
            text = ""
        spaced = spaced if text else word.spaced
        text, end = text + word.text, word_end
    if text:
        yield text, spaced, end


def checked(aligned: Aligned, min_confidence: float) -> Aligned:
    """The alignment. Raises `EntryError` if its confidence is too low."""
    if aligned.confidence is not None and not aligned.confidence >= min_confidence:
        raise EntryError(
            Reason.CONFIDENCE, f"confidence {aligned.confidence:.3f} is below min_confidence {min_confidence:g}"
        )
    return aligned
