"""Records and likelihoods that tests can compute by hand."""

import numpy as np

from tolktrain.data.batch import Batch
from tolktrain.data.records import Record
from tolktrain.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_vocab_size=100, text_eos=0, num_units=50)


def regular_record(
    record_id: str, first: int, words: int = 40, source: str = "voice", num_codebooks: int = 1, utterance: int = 4
) -> Record:
    """A record of one text id and two units per word, counting up from `first`; an utterance every four words."""
    text = (first + np.arange(words)) % 99 + 1
    units = np.repeat((first + np.arange(words)) % 50, 2)[:, None] + np.zeros((1, num_codebooks), int)
    word_ends = np.arange(1, words + 1)
    last = word_ends[utterance - 1 :: utterance]
    return Record(
        id=record_id,
        source=source,
        text_ids=text.astype(np.uint32),
        units=units.astype(np.uint16),
        run_lengths=np.ones(2 * words, np.uint16),
        word_text_ends=word_ends.astype(np.uint32),
        word_unit_ends=(2 * word_ends).astype(np.uint32),
        utterance_text_ends=last.astype(np.uint32),
        utterance_unit_ends=(2 * last).astype(np.uint32),
    )


def random_nll(batch: Batch, seed: int = 0) -> np.ndarray:
    """Likelihoods that depend on nothing but chance, positive where something is scored."""
    rng = np.random.default_rng([seed, int(batch.tokens.sum())])
    return rng.exponential(size=batch.text_pred.shape) * (batch.text_pred | batch.speech_pred).numpy()
