"""Forced alignment: the end of each word of a known text, from a CTC model's probabilities of letters.

The Viterbi search is our own. torchaudio, which has one, follows torch by releases that do not always come; the
ctc-segmentation library lets a letter and the blank share a state, so that it also takes paths that spell another text
("a-a" for "a", "a" for "aa"), and works on one utterance at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import AlignmentConfig
from tolktrain.prepare.recordings.align.ctc_model import CtcModel
from tolktrain.prepare.recordings.align.normalize import Written, spoken_words
from tolktrain.prepare.recordings.align.spoken_numbers import Numbers
from tolktrain.prepare.utterances import Aligned, EntryError, Reason
from tolktrain.units.base import Samples

if TYPE_CHECKING:
    import torch

Tokens = npt.NDArray[np.int64]

# Of the letters and digits of an utterance, those that the model's vocabulary may lack.
LARGEST_UNKNOWN_SHARE = 0.1

# A CTC model emits a letter for a moment while it lasts, then blanks: a word ends somewhere between its last letter's
# emission and the next token. Half of that, and at most this much, is given to the word.
LONGEST_LAG_SECONDS = 0.04

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
    tokens: Tokens
    last_tokens: list[int | None]  # for each written word the place of its last token; None if nothing is spoken


class CtcAligner:
    """Ends of words by CTC forced alignment.

    A word ends where the last frame of its last letter ends, or later by half of the blank frames that follow, at most
    40 ms; longer silence is not its own. The confidence of an utterance is the geometric mean, over its letters, of
    the letter's probability in the frames that it has.
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
        paths = best_paths([rows for _, rows in good], [task.tokens for task, _ in good], self._model.blank)
        for (task, rows), path in zip(good, paths, strict=True):
            results[task.place] = self._aligned(task, rows, path, len(waveforms[task.place]))
        return [results[place] for place in range(len(waveforms))]

    def _task(self, place: int, waveform: Samples, text: str) -> _Task:
        words = spoken_words(text, self._language)
        if not any(word.spoken for word in words):
            raise EntryError(Reason.TEXT, f"nothing of the text {text.strip()[:40]!r} is spoken")
        tokens: list[int] = []
        last_tokens: list[int | None] = []
        unknown = known = 0
        for word in words:
            before = len(tokens)
            for spoken in word.spoken:
                ids = [self._model.token_ids(char) for char in spoken if char != "'" or self._model.token_ids(char)]
                unknown += sum(not found for found in ids)
                known += sum(bool(found) for found in ids)
                if tokens and any(ids) and self._model.delimiter is not None:
                    tokens.append(self._model.delimiter)
                tokens += [number for found in ids for number in found]
            if word.spoken and len(tokens) == before:
                raise EntryError(Reason.ALIGNMENT, f"the model's vocabulary has no letter of {word.text!r}")
            last_tokens.append(len(tokens) - 1 if word.spoken else None)
        if unknown > LARGEST_UNKNOWN_SHARE * (unknown + known):
            raise EntryError(Reason.ALIGNMENT, f"the model's vocabulary lacks {unknown} of {unknown + known} letters")
        found_tokens = np.array(tokens, np.int64)
        frames, needed = self._model.num_frames(len(waveform)), frames_needed(found_tokens)
        if frames < needed:
            raise EntryError(
                Reason.ALIGNMENT, f"the text needs {needed} frames; the audio has {frames}, so it is cut off"
            )
        return _Task(place, words, found_tokens, last_tokens)

    def _aligned(self, task: _Task, emissions: "torch.Tensor", path: Tokens, num_samples: int) -> Aligned:
        duration = num_samples / self.sample_rate
        ends: list[float] = []
        for last in task.last_tokens:
            if last is None:
                ends.append(ends[-1] if ends else 0.0)
            else:
                frame, blanks = last_frame(path, last)
                lag = min(blanks / 2 * self._model.stride / self.sample_rate, LONGEST_LAG_SECONDS)
                ends.append(min(self._model.frame_end(frame) + lag, duration))
        return Aligned(
            tuple(word.text for word in task.words), np.array(ends, np.float64), self._confidence(task, emissions, path)
        )

    def _confidence(self, task: _Task, emissions: "torch.Tensor", path: Tokens) -> float:
        frames = np.flatnonzero(path >= 0)
        places = path[frames]
        log_probabilities = emissions.cpu().numpy()[frames, task.tokens[places]].astype(np.float64)
        means = np.bincount(places, log_probabilities) / np.bincount(places)
        return float(np.exp(means[task.tokens != self._model.delimiter].mean()))


def checked(aligned: Aligned, min_confidence: float) -> Aligned:
    """The alignment. Raises `EntryError` if its confidence is too low."""
    if aligned.confidence is not None and not aligned.confidence >= min_confidence:
        raise EntryError(
            Reason.CONFIDENCE, f"confidence {aligned.confidence:.3f} is below min_confidence {min_confidence:g}"
        )
    return aligned
