"""Audio of questions and of the answers that a model speaks and writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.evaluate.closed_answers.questions import Question
from tolktrain.evaluate.closed_answers.score import prompt
from tolktrain.files.writing import write_wav_pieces
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.units.base import expand

NUM_SAMPLES = 6
_MOST_SECONDS = 6.0
_MOST_UNITS = 120
_MOST_TEXT = 16


def record_answers(continuer: Continuer, questions: Sequence[Question], folder: Path) -> list[dict[str, Any]]:
    """Write the audio of some questions, asked in speech, and of the likeliest answers, unit by unit.

    Args:
        continuer: the model.
        questions: of which the first of several groups are taken, in turn of kinds.
        folder: of the files, which is made if there is none.

    Returns:
        Of each: `question` and `answer` (the right word), `written`, `files` (`question`, `answer`); empty if units
        cannot be turned into audio.
    """
    speaker = Speaker(continuer)
    if speaker.vocoder is None:
        return []
    chosen = _choose(questions)
    vocabulary, window = continuer.vocabulary, continuer.window
    contexts = [prompt(question, "speech", vocabulary) for question in chosen]
    greedy = Sampling(temperature=0.0, top_k=1, seed=0)
    limits = SpeechLimits(speaker.durations.seconds, _MOST_SECONDS, _MOST_UNITS, utterances=1)
    nothing = [np.zeros((0, vocabulary.num_codebooks), np.int64)] * len(chosen)
    spoken = sample_speech(
        make_decoder(continuer.model, "speech", window), nothing, vocabulary, greedy, limits, contexts
    )
    written = sample_text(
        make_decoder(continuer.model, "text", window), contexts, vocabulary, greedy, TextLimits(_MOST_TEXT, 1)
    )
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for question, units, ids in zip(chosen, spoken, written, strict=True):
        asked, drawn = question.asked, units[units[:, 0] != vocabulary.speech_eos]
        audio = {
            "question": expand(asked.units.astype(np.int64), asked.run_lengths.astype(np.int64)),
            "answer": expand(drawn, speaker.durations.run_lengths(drawn)) if len(drawn) else drawn,
        }
        files = {part: f"{question.id}-{part}.wav" for part, frames in audio.items() if len(frames)}
        for part, name in files.items():
            write_wav_pieces(folder / name, speaker.vocoder.stream(audio[part]), speaker.vocoder.sample_rate)
        entries.append(
            {
                "id": question.id,
                "question": _text(continuer, question.asked.text_ids.tolist()),
                "answer": question.answer,
                "written": _text(continuer, [token for token in ids if token != vocabulary.text_eos]),
                "files": files,
            }
        )
    return entries


def _choose(questions: Sequence[Question]) -> list[Question]:
    """Questions of different groups, their kinds in turn."""
    kinds = list(dict.fromkeys(question.kind for question in questions))
    chosen: list[Question] = []
    groups: set[str] = set()
    for question in questions:
        if question.kind == kinds[len(chosen) % len(kinds)] and question.group not in groups:
            chosen.append(question)
            groups.add(question.group)
        if len(chosen) == NUM_SAMPLES:
            break
    return chosen


def _text(continuer: Continuer, ids: list[int]) -> str:
    return str(continuer.text.tokenizer.decode(ids)).strip()
