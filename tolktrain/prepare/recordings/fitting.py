"""Fitting the log-mel speech tokenizer of a set on the set's own audio."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from tolktrain.config.prepare import PrepareConfig, RecordingsConfig
from tolktrain.errors import UserError
from tolktrain.prepare.job.splits import TRAIN, split_of
from tolktrain.prepare.recordings.audio import AudioReader
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.utterances import EntryError, Utterance
from tolktrain.units.base import Samples
from tolktrain.units.description import DESCRIPTION_FILE
from tolktrain.units.load import describe_speech_tokenizer
from tolktrain.units.logmel import NAME, LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis


def fit_if_missing(config: PrepareConfig, report: Callable[[str], None]) -> None:
    """Fit the speech tokenizer into its folder, unless one is there or none is to be fitted.

    Utterances of the training split, in an order drawn from the seed, until enough audio is read: the same manifest and
    settings give the same tokenizer on every machine. Raises `UserError` when there is no audio to fit.
    """
    recordings = config.recordings
    assert recordings is not None
    folder, fit = Path(recordings.speech_tokenizer.path), recordings.speech_tokenizer.fit
    if fit is None:
        return
    if (folder / DESCRIPTION_FILE).exists():
        present = describe_speech_tokenizer(folder)
        if (present.name, present.num_units) != (NAME, fit.num_units):
            raise UserError(
                f"{folder} holds a tokenizer of the kind {present.name} with {present.num_units} units, but"
                f" recordings.speech_tokenizer.fit asks for {NAME} with {fit.num_units}; name another folder, or remove"
                " fit to take the one that is there"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Machines that share the folder wait for the first of them; where locks are not shared they all make the same.
    with FileLock(folder / ".fit.lock"):
        if (folder / DESCRIPTION_FILE).exists():
            return
        report(f"fitting {fit.num_units} units on {fit.hours:g} hours of the training split")
        utterances, _ = read_manifest(recordings)
        chosen = [item for item in utterances if split_of(config.heldout, item.source, item.speaker) == TRAIN]
        if not chosen:
            raise UserError(
                f"{recordings.manifest} has no usable utterance in the training split to fit units on; lower"
                " heldout.sources and heldout.speakers, or correct the manifest"
            )
        random.Random(fit.seed).shuffle(chosen)
        analysis = LogMelAnalysis()
        tokenizer = LogMelTokenizer.fit_from(
            _waveforms(recordings, chosen, analysis.sample_rate), fit.num_units, fit.seed, fit.hours, analysis
        )
        tokenizer.save(folder)


def _waveforms(recordings: RecordingsConfig, utterances: Sequence[Utterance], sample_rate: int) -> Iterator[Samples]:
    for utterance in utterances:
        try:
            with AudioReader(recordings.channel, recordings.bounds) as reader:
                waveform = reader.read(utterance, sample_rate)
        except EntryError:
            continue  # preparing reports it
        yield waveform
