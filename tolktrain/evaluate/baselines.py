"""Bigram and unigram baselines of a data set, scored on the same positions as the model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tolktrain.data.batch import Batch
from tolktrain.data.records import Record
from tolktrain.data.sequences import text_with_eos, units_with_eos
from tolktrain.evaluate.ngram import UNKNOWN, Bigram, FloatArray, IntArray, fit, in_held_out_tenth
from tolktrain.vocabulary import Vocabulary


@dataclass(frozen=True)
class Baselines:
    """Bigrams of the text and of each codebook of speech; None for a modality that the training records lack."""

    text: Bigram | None
    speech: tuple[Bigram, ...] | None

    @property
    def unigrams(self) -> "Baselines":
        """The same without the bigrams' share: unigrams interpolated with the uniform distribution."""
        return Baselines(
            text=self.text.without_history() if self.text else None,
            speech=tuple(bigram.without_history() for bigram in self.speech) if self.speech else None,
        )

    def can_score(self, text: bool, speech: bool) -> bool:
        """Whether there is a baseline of each modality that is asked for."""
        return (self.text is not None or not text) and (self.speech is not None or not speech)

    def token_nll(self, batch: Batch) -> FloatArray:
        """Text and speech targets together; 0 at those of a modality without a baseline."""
        parts = [nll for nll in (self.text_nll(batch), self.speech_nll(batch)) if nll is not None]
        return np.sum(parts, axis=0) if parts else np.zeros(batch.speech_pred.shape)

    def text_nll(self, batch: Batch) -> FloatArray | None:
        """Negative log-likelihood in nats, float64 [B, T], of the text targets that are scored; 0 elsewhere.

        The history is the input token of the position; a special or a speech token is an unknown history.
        """
        if self.text is None:
            return None
        inputs, targets = batch.tokens[:, 0].numpy(), batch.targets[:, 0].numpy()
        is_text = ~batch.speech_in.numpy() & (inputs < self.text.vocab_size)
        return _nll(self.text, np.where(is_text, inputs, UNKNOWN), targets, batch.text_pred.numpy())

    def speech_nll(self, batch: Batch) -> FloatArray | None:
        """The same of speech targets, summed over codebooks as the model's loss is; PAD never is target or history."""
        if self.speech is None:
            return None
        total = np.zeros(batch.speech_pred.shape)
        for codebook, bigram in enumerate(self.speech):
            inputs, targets = batch.tokens[:, codebook].numpy(), batch.targets[:, codebook].numpy()
            history = np.where(batch.speech_in.numpy(), inputs, UNKNOWN)
            total += _nll(bigram, history, targets, batch.speech_pred.numpy() & (targets < bigram.vocab_size))
        return total


def fit_baselines(records: Iterable[Record], vocabulary: Vocabulary) -> Baselines:
    """Bigrams of the records' texts and units, EOS at utterance ends, as in training sequences.

    The weights are fitted on a tenth of the records, chosen by their text: the same text in another voice belongs to
    the same side.
    """
    text: list[IntArray] = []
    speech: list[list[IntArray]] = [[] for _ in range(vocabulary.num_codebooks)]
    text_held_out: list[bool] = []
    speech_held_out: list[bool] = []
    for record in records:
        held_out = in_held_out_tenth(record.text_ids.tobytes() if record.has_text else record.id.encode())
        if record.has_text:
            text.append(text_with_eos(record, vocabulary))
            text_held_out.append(held_out)
        if record.has_speech:
            units = units_with_eos(record, vocabulary)
            for codebook, streams in enumerate(speech):
                streams.append(units[:, codebook])
            speech_held_out.append(held_out)
    return Baselines(
        text=fit(text, text_held_out, vocabulary.text_vocab_size) if text else None,
        # PAD, the last id, is never predicted.
        speech=tuple(fit(streams, speech_held_out, vocabulary.speech_pad) for streams in speech)
        if speech_held_out
        else None,
    )


def _nll(bigram: Bigram, history: IntArray, targets: IntArray, scored: np.ndarray) -> FloatArray:
    nll = np.zeros(scored.shape)
    nll[scored] = -bigram.log_probs(history[scored], targets[scored])
    return nll
