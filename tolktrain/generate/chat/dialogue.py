"""One conversation with a model: its turns as training lays them out, and answers that are drawn after them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tolktrain.data.records import ASSISTANT
from tolktrain.data.sequences import IntArray
from tolktrain.data.strategies.answer_chain import heard
from tolktrain.data.strategies.base import Modality
from tolktrain.data.strategies.conversation import (
    LaidTurn,
    Segment,
    exchanges,
    instructions,
    spoken,
    switch,
    written,
)
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.generate.chat.forms import Form, strategy_of
from tolktrain.generate.context import Context
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.mixed_decoding import MixedDecoder, OneModality
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.generate.text_stream import TextStream

WORD_SECONDS = 0.4  # of speech: 150 words a minute
_RESERVED = 4  # the reciprocal of the share of the context that is kept free for an answer

Ending = Literal["EOS", "length", "seconds", "context"]
"""What ended an answer: EOS, or the limit that was reached without one."""

Said = Literal["heard", "text", "speech"]


@dataclass(frozen=True)
class ChatLimits:
    """When an answer ends without EOS."""

    length: int = 300  # text ids of an answer, and units of it
    seconds: float | None = None  # of speech in an answer


@dataclass(frozen=True)
class Listener:
    """Is called while an answer is drawn."""

    begin: Callable[[Said], None] = lambda kind: None  # a part begins
    text: Callable[[str], None] = lambda piece: None
    unit: Callable[[IntArray], None] = lambda frame: None  # [K]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model has said in a turn."""

    form: Form
    heard: tuple[str, ...]  # of a chain: the text of each turn in speech since the last answer
    text: str  # of interleaved answers, of the spans of text
    text_ids: list[int]
    units: IntArray  # [n, K], repeats collapsed, without EOS; of interleaved answers, of the spans of speech
    ending: Ending
    prompt_positions: int
    num_positions: int  # that were drawn
    seconds: float
    left_out: int  # turns of the conversation that no longer fit into the context

    @property
    def remark(self) -> str | None:
        """What to say about an answer that did not end by itself."""
        reasons = {
            "length": "it reached the limit of its length (--length)",
            "seconds": "it reached the limit of seconds (--seconds)",
            "context": "the context is full (train.sequence_length)",
        }
        if self.ending == "EOS":
            return None
        return f"the answer did not end by itself: {reasons[self.ending]}"


@dataclass(eq=False)
class Dialogue:
    """A conversation. The context of an answer is what training builds of the turns before it, and the role's token.

    If less than a quarter of the model's context, or less than the longest answer, is free, the oldest exchanges are
    left out: whole turns, up to an answer, as in sequences of long conversations. The instructions at the beginning
    stay.
    """

    continuer: Continuer
    decoder: MixedDecoder
    form: Form
    settings: Sampling
    limits: ChatLimits
    number: int = 0  # of the conversation; random numbers depend on it
    speaks: bool = True  # whether the answers of a chain have their speech, too
    turns: list[Turn] = field(default_factory=list, init=False)
    laid: list[LaidTurn] = field(default_factory=list, init=False)
    left_out: int = field(default=0, init=False)

    def add(self, turn: Turn) -> None:
        """Add a turn that is given. Raises UserError if the model has no token for its role, or it lacks what the form
        of answers needs."""
        vocabulary, strategy = self.continuer.vocabulary, strategy_of(self.form)
        turns = [*self.turns, turn]
        if turn.is_answer and self.form == "interleaved" and not turn.is_aligned:
            # Without word times, it is a single span, as short answers are.
            content = [spoken(turn, vocabulary, "nothing") if turn.has_speech else written(turn, vocabulary, "nothing")]
            laid = LaidTurn.of(turn.role, content, vocabulary)
        else:
            spans = self.continuer.config.data.interleaving
            rng = np.random.default_rng([self.settings.seed, self.number, len(turns)])
            laid = strategy.lay_out_turn(turns, len(turns) - 1, vocabulary, spans, rng)
        self.turns, self.laid = turns, [*self.laid, laid]

    def prompt(self) -> list[Segment]:
        """The context of the next answer. Raises UserError if nothing was said, or the last turns do not fit."""
        if not self.turns or self.turns[-1].is_answer or all(turn.is_instruction for turn in self.laid):
            raise UserError("nothing was said since the last answer; a turn of the user must precede an answer")
        self._make_room()
        opening = LaidTurn.of(ASSISTANT, (), self.continuer.vocabulary)
        return [segment for turn in (*self.laid, opening) for segment in turn.segments]

    def answer_to(self, turn: Turn, listener: Listener) -> Answer:
        """Add a turn and answer it; without an answer, the conversation is what it was before. Raises UserError as
        `add` and `answer`."""
        with self.whole():
            self.add(turn)
            return self.answer(listener)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """If this block raises, the conversation is what it was before."""
        before = ([*self.turns], [*self.laid], self.left_out)
        try:
            yield
        except BaseException:  # of a listener that gives up, too
            self.turns, self.laid, self.left_out = before
            raise

    def _make_room(self) -> None:
        """Leave out the oldest exchanges, if there is too little room for an answer."""
        window = self.continuer.window
        reserved = min(self.limits.length + 2, window // _RESERVED)
        while (needed := self._num_positions() + 1) > window - reserved:
            begins = exchanges(self.laid)
            if len(begins) < 2:
                break
            kept = [*range(len(instructions(self.laid))), *range(begins[1], len(self.laid))]
            self.left_out += len(self.laid) - len(kept)
            self.laid, self.turns = [self.laid[place] for place in kept], [self.turns[place] for place in kept]
        if needed + 1 + self.continuer.vocabulary.num_codebooks > window:
            raise UserError(
                f"the last turns and the instructions have {needed:,} positions, and the context of the model"
                f" (train.sequence_length) is {window:,}, so no answer fits; shorten them"
            )

    def _num_positions(self) -> int:
        return sum(turn.num_tokens for turn in self.laid)

    def answer(self, listener: Listener = Listener()) -> Answer:  # noqa: B008 - immutable
        """Draw the assistant's turn, and add it. Raises UserError as `prompt`."""
        begun = time.perf_counter()
        drawing = _Drawing(self, self.prompt(), listener)
        prompt_positions = drawing.num_positions
        if self.form == "interleaved":
            drawing.interleaved()
        else:
            kinds: list[Said] = ["heard"] * len(heard(self.turns)) if self.form == "chain" else []
            kinds += ["text"] if self.form != "speech" else []
            kinds += ["speech"] if self.form == "speech" or (self.form == "chain" and self.speaks) else []
            drawing.parts(kinds)
        drawing.close()
        turn = Turn(ASSISTANT, np.array(drawing.text_ids, np.int64), drawing.units)
        self.turns.append(turn)
        self.laid.append(LaidTurn.of(ASSISTANT, drawing.segments, self.continuer.vocabulary))
        decode = self.continuer.text.tokenizer.decode if self.form != "speech" else lambda ids: ""
        return Answer(
            self.form,
            tuple(decode(ids).strip() for ids in drawing.heard),
            decode(drawing.text_ids).strip(),
            drawing.text_ids,
            drawing.units,
            drawing.ending,
            prompt_positions,
            drawing.num_drawn,
            time.perf_counter() - begun,
            self.left_out,
        )


class _Drawing:
    """An answer as it is drawn: consecutive parts, with a switch between them."""

    def __init__(self, dialogue: Dialogue, prompt: Sequence[Segment], listener: Listener) -> None:
        self._dialogue, self._listener, self._prompt = dialogue, listener, prompt
        self._continuer = dialogue.continuer
        self._vocabulary = dialogue.continuer.vocabulary
        self._turn = dialogue.left_out + len(dialogue.turns)
        self._context = Context.of_segments(prompt, self._vocabulary)
        self.segments: list[Segment] = []
        self.heard: list[list[int]] = []
        self.text_ids: list[int] = []
        self.units: IntArray = np.zeros((0, self._vocabulary.num_codebooks), np.int64)
        self.ending: Ending = "length"
        self.num_drawn = 0

    @property
    def num_positions(self) -> int:
        """Of the context so far."""
        return len(self._context)

    def parts(self, kinds: Sequence[Said]) -> None:
        """Draw parts, each of which ends with EOS, until one does not."""
        for place, kind in enumerate(kinds):
            if place:
                self._keep(switch(self._vocabulary))
            self._listener.begin(kind)
            if kind == "speech":
                self._speak()
            else:
                self._write(kind)
            if self.ending != "EOS":
                return

    def interleaved(self) -> None:
        """Draw spans of text and speech in turn, text first, until EOS; of mean length in training."""
        spans = self._continuer.config.data.interleaving
        num_words, spoken_words = (sum(bounds) // 2 for bounds in (spans.text_words, spans.speech_words))
        modality: Modality = "text"
        while True:
            self._listener.begin(modality)
            seconds = spoken_words * WORD_SECONDS
            if not (self._write("text", num_words) if modality == "text" else self._speak(seconds)):
                return
            if self._room() < 2:
                self.ending = "context"
                return
            self._keep(switch(self._vocabulary))
            modality = "speech" if modality == "text" else "text"

    def close(self) -> None:
        """Let an answer that did not end end with EOS, as every turn of the context does."""
        if self.ending == "EOS":
            return
        while self.segments and self.segments[-1].kind == "special":
            self.segments.pop()  # nothing was said after it
        is_speech = self.segments[-1].kind == "speech" if self.segments else self._dialogue.form == "speech"
        before = self.segments.pop().ids if self.segments else None
        eos: IntArray = np.array([self._vocabulary.text_eos])
        if is_speech:
            eos = np.full((1, self._vocabulary.num_codebooks), self._vocabulary.speech_eos)
        ids = eos if before is None else np.concatenate([before, eos])
        self.segments.append(Segment("speech" if is_speech else "text", ids))

    def _room(self) -> int:
        """Positions that are free, with those of EOS and the delay of its codebooks left out."""
        return self._continuer.window - len(self._context) - self._vocabulary.num_codebooks

    def _keep(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._context = Context.of_segments([*self._prompt, *self.segments], self._vocabulary)

    def _stream(self) -> list[tuple[int, ...]]:
        """Numbers of the random numbers: conversation, turn and part."""
        return [(self._dialogue.number, self._turn, len(self.segments))]

    def _most(self, num_said: int) -> tuple[int, Ending]:
        """Ids or units that may follow as many, and what ends them then."""
        room, length = self._room(), self._dialogue.limits.length - num_said
        return (room, "context") if room < length else (length, "length")

    def _write(self, kind: Said, num_words: int | None = None) -> bool:
        """Draw text up to EOS, or up to a number of words; whether these ended it."""
        most, limit = self._most(len(self.text_ids) if kind == "text" else 0)
        if most < 1:
            self.ending = limit
            return False
        tokenizer, eos = self._continuer.text.tokenizer, self._vocabulary.text_eos
        stream, waiting, has_begun = TextStream(tokenizer), -1, False

        def is_further(ids: Sequence[int]) -> bool:
            # The last id begins the next word.
            return num_words is not None and len(tokenizer.decode(list(ids)).split()) > num_words

        def tell(piece: str) -> None:
            nonlocal has_begun
            piece = piece if has_begun else piece.lstrip()  # many tokenizers put a blank before the first word
            if piece:
                has_begun = True
                self._listener.text(piece)

        def show(row: int, column: IntArray) -> None:
            nonlocal waiting
            self.num_drawn += 1
            # One behind: the last id may belong to the next span.
            if waiting >= 0:
                tell(stream.piece(waiting))
            waiting = int(column[0])

        (ids,) = sample_text(
            OneModality(self._dialogue.decoder, "text"),
            [self._context],
            self._vocabulary,
            self._dialogue.settings,
            TextLimits(most, 1, is_further),
            self._stream(),
            show,
        )
        is_span = ids[-1] != eos and is_further(ids)
        if is_span and len(ids) > 1:
            ids = ids[:-1]
        elif waiting != eos:
            tell(stream.piece(waiting))
        if not is_span:
            self.ending = "EOS" if ids[-1] == eos else limit
        tell(stream.rest())
        words = [token for token in ids if token != eos]
        if kind == "heard":
            self.heard.append(words)
        else:
            self.text_ids += words
        self._keep(Segment("text", np.array(ids, np.int64)))
        return is_span

    def _speak(self, span_seconds: float = float("inf")) -> bool:
        """Draw speech up to EOS, or up to some seconds; whether these ended it."""
        most, limit = self._most(len(self.units))
        if most < 1:
            self.ending = limit
            return False
        durations, seconds = self._continuer.durations, self._dialogue.limits.seconds
        left = float("inf")
        if seconds is not None or span_seconds < left:
            assert durations is not None
            left = (float("inf") if seconds is None else seconds) - durations.seconds(self.units)
        frames = _Frames(self._vocabulary.num_codebooks)

        def show(row: int, column: IntArray) -> None:
            self.num_drawn += 1
            frame = frames.add(column)
            if frame is not None and frame[0] < self._vocabulary.num_units:
                self._listener.unit(frame)

        (units,) = sample_speech(
            OneModality(self._dialogue.decoder, "speech"),
            [self.units[:0]],
            self._vocabulary,
            self._dialogue.settings,
            SpeechLimits(
                durations.seconds if durations is not None else lambda units: 0.0, min(left, span_seconds), most, 1
            ),
            [self._context],
            self._stream(),
            show,
        )
        has_eos = len(units) > 0 and units[-1, 0] == self._vocabulary.speech_eos
        said = units[:-1] if has_eos else units
        is_span = not has_eos and len(units) < most and span_seconds < left
        if not is_span:
            self.ending = "EOS" if has_eos else (limit if len(units) >= most else "seconds")
        self.units = np.concatenate([self.units, said])
        if len(units):
            self._keep(Segment("speech", units))
        return is_span


class _Frames:
    """Frames of units out of positions, in which codebook k is delayed by k."""

    def __init__(self, num_codebooks: int) -> None:
        self._books = np.arange(num_codebooks)
        self._columns: list[Any] = []

    def add(self, column: IntArray) -> IntArray | None:
        """The frame [K] that a position [K] completes, if it completes one."""
        self._columns = [*self._columns[-len(self._books) + 1 :], column] if len(self._books) > 1 else [column]
        if len(self._columns) < len(self._books):
            return None
        frame: IntArray = np.stack(self._columns)[self._books, self._books]
        return frame
