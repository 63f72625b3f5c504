"""Properties of training sequences, checked by reading them back into words."""

from dataclasses import dataclass

import numpy as np
import pytest
from corpora import random_record
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.batch import collate
from tolktrain.data.records import Record
from tolktrain.data.sequences import Sequence, sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

TEXT_SIZE, EOS = 2000, 0
STRATEGIES: tuple[Strategy, ...] = ("speech", "text", "interleaved", "recognition", "synthesis")


@dataclass(frozen=True)
class Token:
    """One token as read back: kind is text, unit, text_eos, unit_eos, begin, end or switch."""

    kind: str
    value: int = 0  # position of the text id or the row of units in the record

    @property
    def is_speech(self) -> bool:
        return self.kind in ("unit", "unit_eos")


def numbered_record(seed: int, words: int, num_codebooks: int = 1, aligned: bool = True) -> Record:
    """A record in which every id occurs once, so that a token tells where it comes from."""
    record = random_record(np.random.default_rng(seed), f"r{seed}", words, num_codebooks=num_codebooks, aligned=aligned)
    text_ids = np.arange(1, len(record.text_ids) + 1, dtype=np.uint32)
    units = np.arange(record.units.size, dtype=np.uint16).reshape(record.units.shape)
    return Record(**{**vars(record), "text_ids": text_ids, "units": units})


def vocabulary_of(record: Record) -> Vocabulary:
    return Vocabulary(TEXT_SIZE, EOS, 10_000, record.units.shape[1])


def make(record: Record, strategy: Strategy, length: int, epoch: int = 0, seed: int = 3, **spans: tuple) -> Sequence:
    rng = sequence_rng(seed, record.id, epoch, "sequence")
    return build_sequence(record, strategy, vocabulary_of(record), length, InterleavingConfig(**spans), rng)


def read_back(sequence: Sequence, vocabulary: Vocabulary) -> list[Token]:
    """Tokens before the padding, the delay of the codebooks undone run by run."""
    specials = {vocabulary.prefix_begin: "begin", vocabulary.prefix_end: "end", vocabulary.switch: "switch"}
    tokens: list[Token] = []
    position = 0
    while position < sequence.length:
        if sequence.is_speech[position]:
            end = position
            while end < sequence.length and sequence.is_speech[end]:
                end += 1
            tokens += read_run(sequence.tokens[:, position:end], vocabulary, cut=end == sequence.tokens.shape[1])
            position = end
            continue
        token = int(sequence.tokens[0, position])
        assert (sequence.tokens[1:, position] == 0).all()
        if token in specials:
            tokens.append(Token(specials[token]))
        else:
            tokens.append(Token("text_eos") if token == EOS else Token("text", token - 1))
        position += 1
    return tokens


def read_run(run: np.ndarray, vocabulary: Vocabulary, cut: bool) -> list[Token]:
    """Rows of units of a run [K, L], whose codebook k must hold row i at position i + k and PAD elsewhere."""
    depth, length = run.shape
    pad, eos = vocabulary.speech_pad, vocabulary.speech_eos
    num_rows = int((run[0] != pad).sum())
    assert num_rows == length - (depth - 1) or (cut and num_rows >= length - (depth - 1))
    rows = run[0, :num_rows]
    for k in range(depth):
        expected = np.full(length, pad)
        for i, first in enumerate(rows):
            if i + k < length:
                expected[i + k] = eos if first == eos else first + k
        assert (run[k] == expected).all()
    return [Token("unit_eos") if row == eos else Token("unit", int(row) // depth) for row in rows]


def words_of(tokens: list[Token], record: Record) -> list[tuple[bool, int, list[Token]]]:
    """Consecutive tokens of one word: (speech, word, tokens); an EOS belongs to the word before it."""
    words: list[tuple[bool, int, list[Token]]] = []
    for token in tokens:
        if token.kind.endswith("_eos"):
            assert words and words[-1][0] == token.is_speech, "EOS must follow a word of its modality"
            words[-1][2].append(token)
            continue
        ends = record.word_unit_ends if token.is_speech else record.word_text_ends
        word = int(np.searchsorted(ends, token.value, side="right"))
        if not words or words[-1][:2] != (token.is_speech, word):
            words.append((token.is_speech, word, []))
        words[-1][2].append(token)
    return words


def expected_word(record: Record, speech: bool, word: int) -> list[Token]:
    ends = record.word_unit_ends if speech else record.word_text_ends
    utterance_ends = record.utterance_unit_ends if speech else record.utterance_text_ends
    begin = int(ends[word - 1]) if word else 0
    kind = "unit" if speech else "text"
    tokens = [Token(kind, value) for value in range(begin, int(ends[word]))]
    return [*tokens, Token(f"{kind}_eos")] if ends[word] in utterance_ends else tokens


def assert_words_complete(tokens: list[Token], record: Record, full: bool) -> list[tuple[bool, int, list[Token]]]:
    """Each word of the covered range once, whole and in order; the last one may be cut if the sequence is full."""
    words = words_of(tokens, record)
    numbers = [word for _, word, _ in words]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for i, (speech, word, found) in enumerate(words):
        expected = expected_word(record, speech, word)
        assert found == expected or (i == len(words) - 1 and full and found == expected[: len(found)])
    if not full:
        assert numbers[-1] == len(record.word_text_ends) - 1 and numbers[0] == 0
    return words


records = st.builds(
    numbered_record, seed=st.integers(0, 10_000), words=st.integers(1, 60), num_codebooks=st.integers(1, 3)
)
lengths = st.integers(2, 150)


@settings(max_examples=60)
@given(record=records, length=lengths, strategy=st.sampled_from(STRATEGIES), epoch=st.integers(0, 5))
def test_shape_masks_and_scores(record: Record, length: int, strategy: Strategy, epoch: int) -> None:
    vocabulary = vocabulary_of(record)
    sequence = make(record, strategy, length, epoch)
    tokens, size = sequence.tokens, length + 1
    assert tokens.shape == (vocabulary.num_codebooks, size) and tokens.dtype == np.int64
    assert sequence.is_speech.shape == sequence.scored.shape == (size,)
    assert 1 <= sequence.length <= size
    assert (tokens[:, sequence.is_speech] < vocabulary.num_units + 2).all()
    assert (tokens[:, ~sequence.is_speech] < TEXT_SIZE + 3).all()
    # Padding: text EOS, not scored.
    assert (tokens[0, sequence.length :] == EOS).all() and (tokens[1:, sequence.length :] == 0).all()
    assert not sequence.is_speech[sequence.length :].any() and not sequence.scored[sequence.length :].any()
    # Specials are never scored, and a scored speech position has a codebook that is not PAD.
    assert not sequence.scored[~sequence.is_speech & (tokens[0] >= TEXT_SIZE)].any()
    assert (tokens[:, sequence.is_speech] != vocabulary.speech_pad).any(axis=0).all()
    if strategy in ("text", "speech"):
        assert sequence.scored[: sequence.length].all()
        assert (sequence.is_speech[: sequence.length] == (strategy == "speech")).all()


@settings(max_examples=60)
@given(record=records, length=lengths, strategy=st.sampled_from(("text", "speech")), epoch=st.integers(0, 5))
def test_one_modality_keeps_every_word(record: Record, length: int, strategy: Strategy, epoch: int) -> None:
    sequence = make(record, strategy, length, epoch)
    tokens = read_back(sequence, vocabulary_of(record))
    assert_words_complete(tokens, record, full=sequence.length == length + 1)


@settings(max_examples=150)
@given(
    record=records,
    length=lengths,
    epoch=st.integers(0, 5),
    text_low=st.integers(1, 6),
    text_more=st.integers(0, 6),
    speech_low=st.integers(1, 6),
    speech_more=st.integers(0, 6),
)
def test_interleaved(
    record: Record, length: int, epoch: int, text_low: int, text_more: int, speech_low: int, speech_more: int
) -> None:
    bounds = {False: (text_low, text_low + text_more), True: (speech_low, speech_low + speech_more)}
    sequence = make(record, "interleaved", length, epoch, text_words=bounds[False], speech_words=bounds[True])
    full = sequence.length == length + 1
    tokens = read_back(sequence, vocabulary_of(record))
    spans: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind == "switch":
            spans.append([])
        else:
            spans[-1].append(token)
    if not spans[-1]:  # the switch was the last token that fitted
        assert full
        spans.pop()
    assert all(spans)
    modalities = [span[0].is_speech for span in spans]
    # A switch at every change of modality and only there.
    assert all(token.is_speech == modality for span, modality in zip(spans, modalities, strict=True) for token in span)
    assert all(before != after for before, after in zip(modalities, modalities[1:], strict=False))
    # Every word once, in one modality, in order; EOS after each utterance and nowhere else.
    assert_words_complete([token for span in spans for token in span], record, full)
    # Spans hold as many words as they may; only the last is cut, by the end of the record or of the sequence.
    for i, span in enumerate(spans):
        low, high = bounds[modalities[i]]
        assert len(words_of(span, record)) <= high
        assert len(words_of(span, record)) >= low or i == len(spans) - 1
    # All but switches is scored.
    is_switch = ~sequence.is_speech & (sequence.tokens[0] == vocabulary_of(record).switch)
    assert (sequence.scored[: sequence.length] == ~is_switch[: sequence.length]).all()


@settings(max_examples=80)
@given(record=records, length=lengths, strategy=st.sampled_from(("recognition", "synthesis")), epoch=st.integers(0, 5))
def test_prefix(record: Record, length: int, strategy: Strategy, epoch: int) -> None:
    vocabulary = vocabulary_of(record)
    sequence = make(record, strategy, length, epoch)
    full = sequence.length == length + 1
    condition, target = ("unit", "text") if strategy == "recognition" else ("text", "unit")
    ends = {"text": record.utterance_text_ends.tolist(), "unit": record.utterance_unit_ends.tolist()}
    expected: list[Token] = []
    tokens = read_back(sequence, vocabulary)
    assert tokens[0].kind == "begin"
    # The first value of the condition tells the utterance; what follows is written out plainly.
    first = ([0, *ends[condition]]).index(tokens[1].value) if len(tokens) > 1 else 0
    for utterance in range(first, record.num_utterances):
        span = {kind: range(([0, *ends[kind]])[utterance], ends[kind][utterance]) for kind in ("text", "unit")}
        expected += [Token("begin"), *(Token(condition, value) for value in span[condition]), Token("end")]
        expected += [*(Token(target, value) for value in span[target]), Token(f"{target}_eos")]
    assert tokens == expected[: len(tokens)]
    # Short only to the end of the record, and if no utterance before could have been done whole.
    lengths = np.diff([0, *ends["text"]]) + np.diff([0, *ends["unit"]]) + 3 + vocabulary.num_codebooks - 1
    assert full or (len(tokens) == len(expected) and (lengths[:first] > length + 1).all())
    # Exactly the targets with their EOS are scored.
    is_target = sequence.is_speech if strategy == "synthesis" else ~sequence.is_speech
    special = ~sequence.is_speech & (sequence.tokens[0] >= TEXT_SIZE)
    assert (sequence.scored == (is_target & ~special & (np.arange(length + 1) < sequence.length))).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), length=lengths, strategy=st.sampled_from(("text", "speech")))
def test_unaligned_records_start_anywhere(seed: int, length: int, strategy: Strategy) -> None:
    record = numbered_record(seed, 30, aligned=False)
    sequence = make(record, strategy, length)
    tokens = read_back(sequence, vocabulary_of(record))
    values = [token.value for token in tokens if token.kind in ("text", "unit")]
    total = len(record.units if strategy == "speech" else record.text_ids)
    assert values == list(range(values[0], values[0] + len(values)))
    assert sequence.length == length + 1 or (values[0] == 0 and values[-1] == total - 1)


@settings(max_examples=40)
@given(record=records, length=lengths, strategy=st.sampled_from(STRATEGIES))
def test_purity(record: Record, length: int, strategy: Strategy) -> None:
    one, two = make(record, strategy, length), make(record, strategy, length)
    for name in ("tokens", "is_speech", "scored"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_other_epochs_seeds_and_purposes_differ() -> None:
    record = numbered_record(1, 400)
    for strategy in STRATEGIES:
        made = [make(record, strategy, 64, epoch, seed) for epoch in range(3) for seed in range(3)]
        # Two of them may begin at the same of the few utterances.
        different = len({sequence.tokens.tobytes() for sequence in made})
        assert different == 9 if strategy == "interleaved" else different >= 7, strategy
    draws = {sequence_rng(*arguments).random() for arguments in [(0, "a", 0, "x"), (0, "b", 0, "x"), (0, "a", 0, "y")]}
    assert len(draws) == 3


def test_the_generator_is_philox_keyed_by_a_digest() -> None:
    import hashlib

    digest = hashlib.blake2b(b"7/2/sequence/some id", digest_size=16).digest()
    reference = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
    assert (
        sequence_rng(7, "some id", 2, "sequence").integers(1 << 40, size=8) == reference.integers(1 << 40, size=8)
    ).all()


def test_every_part_of_a_record_is_drawn_about_equally_often() -> None:
    record = numbered_record(5, 300)
    for strategy in ("text", "speech", "interleaved"):
        counts = np.zeros(len(record.word_text_ends))
        for epoch in range(600):
            sequence = make(record, strategy, 100, epoch)
            tokens = [token for token in read_back(sequence, vocabulary_of(record)) if token.kind != "switch"]
            counts[np.unique([word for _, word, _ in words_of(tokens, record)])] += 1
        tenths = counts.reshape(10, -1).mean(axis=1)
        assert tenths.min() > 0.6 * tenths.mean() and tenths.max() < 1.6 * tenths.mean(), (strategy, tenths)


def test_both_modalities_begin_interleaved_sequences() -> None:
    record = numbered_record(5, 100)
    first = [bool(make(record, "interleaved", 50, epoch).is_speech[0]) for epoch in range(200)]
    assert 60 < sum(first) < 140


def test_missing_modalities_are_refused() -> None:
    rng = np.random.default_rng(0)
    text_only = random_record(rng, "t", text=True, speech=False, aligned=False)
    speech_only = random_record(rng, "s", text=False, aligned=False)
    unaligned = random_record(rng, "u", aligned=False)
    for record, strategy, message in (
        (text_only, "speech", "record 't' has no speech, which the strategy 'speech' needs"),
        (speech_only, "recognition", "record 's' has no text, which the strategy 'recognition' needs"),
        (unaligned, "interleaved", "record 'u' has no word alignment"),
    ):
        with pytest.raises(UserError, match=message):
            build_sequence(record, strategy, Vocabulary(100, 0, 50), 8, InterleavingConfig(), rng)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    rng = np.random.default_rng(0)
    record = random_record(rng, "r")
    for vocabulary, message in (
        (Vocabulary(20, 0, 50), "text_ids holds .* outside the model's text vocabulary of 20 ids"),
        (Vocabulary(100, 0, 7), "units holds .* outside the model's speech vocabulary of 7 ids"),
        (Vocabulary(100, 0, 50, 2), "has 1 codebooks but the model has 2"),
    ):
        with pytest.raises(UserError, match=message):
            build_sequence(record, "interleaved", vocabulary, 8, InterleavingConfig(), rng)


@settings(max_examples=30)
@given(seed=st.integers(0, 100), num_codebooks=st.integers(1, 3), length=st.integers(2, 60))
def test_collate(seed: int, num_codebooks: int, length: int) -> None:
    sequences = [
        make(numbered_record(seed + i, 20, num_codebooks), strategy, length) for i, strategy in enumerate(STRATEGIES)
    ]
    batch = collate(sequences)
    assert batch.tokens.shape == batch.targets.shape == (5, num_codebooks, length)
    num_text = num_speech = num_entropy = 0
    for b, sequence in enumerate(sequences):
        for t in range(length):
            assert (batch.tokens[b, :, t].numpy() == sequence.tokens[:, t]).all()
            assert (batch.targets[b, :, t].numpy() == sequence.tokens[:, t + 1]).all()
            assert bool(batch.speech_in[b, t]) == bool(sequence.is_speech[t])
            scored, speech = bool(sequence.scored[t + 1]), bool(sequence.is_speech[t + 1])
            assert bool(batch.speech_pred[b, t]) == (scored and speech)
            assert bool(batch.text_pred[b, t]) == (scored and not speech)
            num_text, num_speech = num_text + (scored and not speech), num_speech + (scored and speech)
        num_entropy += length * bool(batch.speech_pred[b].any())
    assert (batch.num_text_scored, batch.num_speech_scored) == (num_text, num_speech)
    assert batch.num_entropy_positions == num_entropy
    assert batch.segments.num_positions == int(batch.speech_in.sum())
    width = len(sequences)
    text = [t * width + b for t in range(length) for b in range(width) if batch.text_pred[b, t]]
    assert batch.scored.text.tolist() == text and batch.scored.num_speech == num_speech
    assert batch.scored.text_targets.tolist() == [int(batch.targets[row % width, 0, row // width]) for row in text]
    assert batch.strategies == list(STRATEGIES) and batch.record_ids == [s.record_id for s in sequences]
