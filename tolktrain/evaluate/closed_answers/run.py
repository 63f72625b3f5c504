"""`tolktrain evaluate --answers`: questions answered by a model and by the one that it was tuned from."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.evaluate.closed_answers.measure import DIRECTIONS, MOST_WRITTEN, Answerer, Answers, summarize
from tolktrain.evaluate.closed_answers.questions import Question, read_questions
from tolktrain.evaluate.closed_answers.recorded import record_answers
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.decoding import use_accelerator
from tolktrain.interop.formats.find import describe_weights
from tolktrain.interop.initial_weights import InitialWeights, initialize_model
from tolktrain.interop.trained import load_trained
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.runs.initial_weights import read_record
from tolktrain.runs.paths import RunPaths
from tolktrain.vocabulary import Vocabulary

FORMAT = 1

logger = logging.getLogger(__name__)


def evaluate_answers(
    run_dir: str | Path, folder: Path, progress: Progress | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Let a model answer questions in text and in speech, and write answers.json, the answers, and recordings of some
    of them into the folder `answers` of the run.

    The model that the run began from (`checkpoint.init_from`) answers the same prompts, with the tokens of roles as
    they were before the first step.

    Args:
        run_dir: run, or folder of weights, which has no base model.
        folder: of questions (`evaluate.closed_answers.questions`).
        progress: where progress is reported.
        overrides: of the configuration of a folder of weights.

    Returns:
        The content of answers.json: `format`, `run`, `step`, `folder`, `base` (the weights, or None), `rows`
        (`measure.summarize`), `samples` (questions and answers with the names of their audio files), `seconds`.

    Raises:
        UserError: there is no such model, it has no tokens of roles, or the questions do not fit it; or several
            processes were started.
    """
    begin = time.monotonic()
    if ProcessEnvironment.detect().world_size > 1:
        raise UserError("--answers runs in one process; start it without torchrun or srun")
    progress = progress or Progress()
    layout = initialize()
    progress.at("loading the model")
    model, config, state = load_trained(run_dir, overrides=overrides)
    continuer = Continuer(use_accelerator(model), config, state.get("tokenizers") or {})
    vocabulary = _vocabulary(continuer)
    questions = read_questions(folder, vocabulary)
    _check_lengths(questions, config.train.sequence_length)
    base = _base_model(Path(run_dir), config, model, layout, vocabulary)
    answering = {"model": model} | ({} if base is None else {"base": base})
    decode, window = continuer.text.tokenizer.decode, config.train.sequence_length
    found: dict[str, list[Answers]] = {}
    with spinner() as display:
        task = display.add_task("starting", total=None)

        def say(what: str) -> None:
            progress.at(what)
            display.update(task, description=what)

        for name, some in answering.items():
            answerer = Answerer(some, vocabulary, decode, window)
            found[name] = []
            for direction in DIRECTIONS:
                say(f"{name}: questions in {direction.asked_in}, answers in {direction.answered_in}")
                found[name].append(answerer.answer(questions, direction, progress.touch))
        say("recording answers")
        paths = RunPaths(Path(run_dir))
        samples = record_answers(continuer, questions, paths.answers.parent)
    before = found.get("base", [None] * len(DIRECTIONS))
    together = zip(DIRECTIONS, found["model"], before, strict=True)
    rows = [row for direction, tuned, its in together for row in summarize(questions, direction, tuned, its)]
    result = {
        "format": FORMAT,
        "run": config.run.name,
        "step": int(state.get("step") or 0),
        "folder": str(folder),
        "base": None if base is None else str(_began_from(Path(run_dir))),
        "rows": rows,
        "samples": samples,
        "seconds": round(time.monotonic() - begin, 2),
    }
    lines = [json.dumps(line, ensure_ascii=False) for line in _lines(questions, found)]
    replace_file(paths.answers.parent / "answers.jsonl", "\n".join(lines) + "\n")
    replace_file(paths.answers, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _vocabulary(continuer: Continuer) -> Vocabulary:
    sizes = continuer.model.architecture
    digests = continuer.text.info.sha256, continuer.describe_speech()[0].sha256
    return Vocabulary(
        sizes.text_vocab_size,
        continuer.text.info.eos_id,
        sizes.num_units,
        sizes.num_codebooks,
        sizes.special_tokens,
        *digests,
    )


def _check_lengths(questions: Sequence[Question], window: int) -> None:
    """Raise `UserError` if a question with its answer is longer than the context of the model."""
    for question in questions:
        asked = max(len(question.asked.text_ids), len(question.asked.units))
        answer = max(max(len(entry.turn.text_ids), len(entry.turn.units)) for entry in question.candidates)
        if asked + answer + MOST_WRITTEN > window:
            raise UserError(
                f"the question {question.id} and its answer have up to {asked + answer:,} positions, and the context of"
                f" the model (train.sequence_length) is {window:,}; ask shorter questions"
            )


def _began_from(run_dir: Path) -> str | None:
    record = read_record(RunPaths(run_dir).initial_weights)
    return None if record is None else record.folder


def _base_model(
    run_dir: Path, config: Config, model: SmolTolk, layout: Layout, vocabulary: Vocabulary
) -> SmolTolk | None:
    """The model as it was before the first step of a run; None if the run did not begin from weights, or these are
    gone."""
    folder = _began_from(run_dir)
    if folder is None:
        logger.warning("%s did not begin from trained weights, so there is no base model to compare with", run_dir)
        return None
    if not Path(folder).is_dir():
        logger.warning("%s, from which the run began, is gone, so there is no base model to compare with", folder)
        return None
    base = SmolTolk(model.architecture, None, layout)
    weights = describe_weights(Path(folder), "the base model")
    initial = InitialWeights.of(weights, base, layout, config, vocabulary.tokenizers)
    initialize_model(base, config, initial)
    return use_accelerator(base.eval())


def _lines(questions: Sequence[Question], found: Mapping[str, Sequence[Answers]]) -> list[dict[str, Any]]:
    """A line for each question, direction and model."""
    lines = []
    for name, answers in found.items():
        for direction, given in zip(DIRECTIONS, answers, strict=True):
            for place, question in enumerate(questions):
                chosen = given.chosen[place]
                line = {"id": question.id, "model": name, **asdict(direction), "answer": question.answer}
                line["chosen"] = None if chosen is None else question.candidates[chosen].word
                if given.texts:
                    line["text"] = given.texts[place]
                lines.append(line)
    return lines
