"""espeak-ng as a library: audio of a sentence with the exact start of every word.

The synthesizer keeps state from sentence to sentence (phases, and C's random numbers for breath), so the same
sentence sounds slightly different later in a process. `speak_passages` therefore speaks each passage in a process
of its own, with a fixed random state: the same passage gives the same samples, whatever was spoken before.
"""

import ctypes
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError

SAMPLE_RATE = 22_050
LIBRARY = "libespeak-ng.so.1"
PACKAGE = "libespeak-ng1"

_AUDIO_OUTPUT_RETRIEVAL = 1
_INITIALIZE_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_CHARS_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_WORD = 0, 1
_RANDOM_STATE = 1


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng and how it speaks."""

    name: str  # language and variant, such as en-us+f1
    rate: int  # words per minute
    pitch: int  # 0 to 100


@dataclass(frozen=True, eq=False)
class Utterance:
    """A spoken sentence."""

    samples: npt.NDArray[np.int16]  # [n] at SAMPLE_RATE
    word_ends: npt.NDArray[np.int64]  # [words], in samples, exclusive; the last one is n


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        raise UserError(
            f"{LIBRARY} was not found; install espeak-ng: apt-get install {PACKAGE} (Debian, Ubuntu)"
        ) from None


def version() -> str:
    """Version of the installed espeak-ng. Raises `UserError` if there is none."""
    info = _load().espeak_Info
    info.restype = ctypes.c_char_p
    return str(info(None).decode())


class Synthesizer:
    """espeak-ng in this process; one voice. Raises `UserError` if the library or the voice is missing."""

    def __init__(self, voice: Voice) -> None:
        self._library = _load()
        rate = self._library.espeak_Initialize(_AUDIO_OUTPUT_RETRIEVAL, 0, None, _INITIALIZE_DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise UserError(f"espeak-ng gave the sample rate {rate} instead of {SAMPLE_RATE}; install espeak-ng-data")
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._words: list[tuple[int, int]] = []
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise UserError(f"espeak-ng has no voice {voice.name!r}; `espeak-ng --voices` lists them")
        self._library.espeak_SetParameter(_RATE, voice.rate, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        # Initializing seeds C's generator, which breath noise draws from, by the clock.
        ctypes.CDLL(None).srand(_RANDOM_STATE)

    def _collect(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if wave and count:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).astype(np.int16))
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            if event.type == _EVENT_WORD and event.length:
                self._words.append((event.text_position - 1, event.sample))
            index += 1
        return 0

    def speak(self, words: Sequence[str]) -> Utterance:
        """Speak one sentence. Raises `UserError` if espeak-ng does not report every word."""
        self._chunks.clear()
        self._words.clear()
        # A plain space lets espeak-ng fuse frequent pairs ("in the") into one word with one event; a no-break space
        # does not. After punctuation it would swallow the pause.
        text = "".join(word + (" " if word[-1] in ",.;:!?" else "\u00a0") for word in words).rstrip()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        positions = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
        if [position for position, _ in self._words] != positions:
            raise UserError(
                f"espeak-ng did not report each word of {' '.join(words)!r}; rephrase it without numbers and signs"
            )
        samples = np.concatenate(self._chunks)
        ends = np.array([*(start for _, start in self._words[1:]), len(samples)], np.int64)
        return Utterance(samples, ends)


def _speak(task: tuple[Voice, Sequence[Sequence[str]]]) -> list[Utterance]:
    voice, sentences = task
    synthesizer = Synthesizer(voice)
    return [synthesizer.speak(sentence) for sentence in sentences]


def _heed_term() -> None:
    """The pool ends its processes by TERM. They would wait for ever if their server's parent had blocked it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def speak_passages(
    passages: Iterable[tuple[Voice, Sequence[Sequence[str]]]], processes: int = 1
) -> Iterator[list[Utterance]]:
    """Speak each passage (a voice and its sentences as lists of words) in a fresh process; results in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(processes, _heed_term, maxtasksperchild=1) as pool:
        yield from pool.imap(_speak, passages, chunksize=1)
