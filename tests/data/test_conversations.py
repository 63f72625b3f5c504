"""Conversations: stored and read back, and as sequences of which answers and ends of turns are scored."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dialogues import EOS, NUM_UNITS, TEXT_SIZE, TOKENS, Numbers, conversations, transcribed, vocabulary
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.batch import collate
from tolktrain.data.records import Record, columns_of
from tolktrain.data.sequences import Sequence, sequence_rng
from tolktrain.data.strategies import STRATEGIES, build_sequence
from tolktrain.data.turns import Turn, conversations_of, record_of
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

ANSWERS: tuple[Strategy, ...] = ("answer_text", "answer_speech", "answer_interleaved", "answer_chain")
SPANS = InterleavingConfig(text_words=(1, 2), speech_words=(1, 3))
USER, ASSISTANT, SYSTEM, SWITCH = TEXT_SIZE + 3, TEXT_SIZE + 4, TEXT_SIZE + 5, TEXT_SIZE + 2


def record(talks: list[list[Turn]], kind: Any = "conversation", name: str = "r") -> Record:
    made = record_of(name, "here", talks, talks[0][0].units.shape[1], kind)
    made.check(TEXT_SIZE, NUM_UNITS, made.units.shape[1])
    return made


def make(made: Record, strategy: Strategy, length: int, seed: int = 3, spans: InterleavingConfig = SPANS) -> Sequence:
    rng = sequence_rng(seed, made.id, 0, "sequence")
    return build_sequence(made, strategy, vocabulary(made.units.shape[1]), length, spans, rng)


def shown(sequence: Sequence) -> str:
    """Tokens with + if they are scored: t12, u3, E (EOS), | (switch), and the letter of a role."""
    marks = {USER: "U", ASSISTANT: "A", SYSTEM: "S", SWITCH: "|", EOS: "E"}
    words = []
    for place in range(sequence.length):
        token = int(sequence.tokens[0, place])
        if sequence.is_speech[place]:
            word = "E" if token == NUM_UNITS else f"u{token}"
        else:
            word = marks.get(token, f"t{token}")
        words.append(word + ("+" if sequence.scored[place] else ""))
    return " ".join(words)


def story() -> list[Turn]:
    """An instruction, a spoken question with its text, an answer, a written question, an answer."""
    numbers = Numbers()
    return [
        numbers.turn("system", [(2, 1)], True, False, False, 1),
        numbers.turn("user", [(1, 2), (1, 1)], True, True, False, 1),
        numbers.turn("assistant", [(1, 2), (2, 1)], True, True, True, 1),
        numbers.turn("user", [(1, 1)], True, False, False, 1),
        numbers.turn("assistant", [(1, 1)], True, True, True, 1),
    ]


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("answer_text", "S t1 t2 E+ U u0 u1 u2 E+ A t5+ t6+ t7+ E+ U t8 E+ A t9+ E+"),
        ("answer_speech", "S t1 t2 E+ U u0 u1 u2 E+ A u3+ u4+ u5+ E+ U t8 E+ A u6+ E+"),
        (
            "answer_chain",
            "S t1 t2 E+ U u0 u1 u2 E+ A t3+ t4+ E+ | t5+ t6+ t7+ E+ | u3+ u4+ u5+ E+ U t8 E+ A t9+ E+ | u6+ E+",
        ),
    ],
)
def test_what_is_scored(strategy: Strategy, wanted: str) -> None:
    """By hand: the answers, and each EOS; neither roles nor switches nor what others say."""
    sequence = make(record([story()]), strategy, 60)
    assert shown(sequence) == wanted and not sequence.scored[sequence.length :].any()
    assert sequence.document_starts == (0,)


def test_interleaved_answers_by_hand() -> None:
    """Word by word, beginning with either modality."""
    spans = InterleavingConfig(text_words=(1, 1), speech_words=(1, 1))
    begin = "S t1 t2 E+ U u0 u1 u2 E+"
    firsts, seconds = ("A t5+ | u5+ E+", "A u3+ u4+ | t6+ t7+ E+"), ("A t9+ E+", "A u6+ E+")
    wanted = {f"{begin} {first} U t8 E+ {second}" for first in firsts for second in seconds}
    assert {shown(make(record([story()]), "answer_interleaved", 60, seed, spans)) for seed in range(40)} == wanted


def test_preferences_are_pairs_of_documents() -> None:
    numbers = Numbers()
    question = numbers.turn("user", [(2, 3)], True, True, False, 1)
    good, bad = (numbers.turn("assistant", [(1, 2)], text, True, False, 1) for text in (False, False))
    sequence = make(record([[question, good], [question, bad]], "preference"), "preference", 30)
    assert shown(sequence) == "U u0 u1 u2 E A u3+ u4+ E+ U u0 u1 u2 E A u5+ u6+ E+"
    assert sequence.document_starts == (0, 9)
    with pytest.raises(UserError, match="record 'r': its chosen and rejected answers.* do not fit into 17 tokens"):
        make(record([[question, good], [question, bad]], "preference"), "preference", 16)
    two = record([[question, good], [question, bad]] * 2, "preference")
    assert make(two, "preference", 35).document_starts == (0, 9, 18, 27)
    with pytest.raises(UserError, match="do not fit into 35 tokens; raise train.sequence_length"):  # the second pair
        make(two, "preference", 34)
    odd = record_of("r", "here", [[question, good], [question, bad], [question, good]], 1, "preference")
    with pytest.raises(UserError, match="record 'r' has 3 conversations, but preferences are pairs of them"):
        make(odd, "preference", 60)
    with pytest.raises(UserError, match="kind 'preference', and the strategy 'answer_text' reads the kind 'conv"):
        make(record([[question, good], [question, bad]], "preference"), "answer_text", 30)


@given(talks=conversations())
@settings(max_examples=60, deadline=None)
def test_records_are_read_back(talks: list[list[Turn]]) -> None:
    """Through the columns of a set, some of which a record may lack."""
    made = record(talks)
    found = Record.from_sample(made.to_sample(columns_of(True, True, True, "conversation")))
    found.check(TEXT_SIZE, NUM_UNITS, made.units.shape[1])
    for again in (conversations_of(made), conversations_of(found)):
        assert [[turn.role for turn in talk] for talk in again] == [[turn.role for turn in talk] for talk in talks]
        for turn, other in zip(sum(again, []), sum(talks, []), strict=True):
            for name in ("text_ids", "units", "run_lengths", "word_text_ends", "word_unit_ends"):
                assert np.array_equal(getattr(turn, name), getattr(other, name)), name


@given(talks=conversations(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_spoiled_record_passes(talks: list[list[Turn]], data: st.DataObject) -> None:
    """An end or a role that is changed is refused, or gives turns that a record may have."""
    made = record(talks)
    names = ["turn_roles", "conversation_ends", "utterance_text_ends", "utterance_unit_ends", "turn_word_ends"]
    name = data.draw(st.sampled_from([*names, "word_text_ends", "word_unit_ends"]))
    spoiled = getattr(made, name).copy()
    assume(len(spoiled))
    place, value = data.draw(st.integers(0, len(spoiled) - 1)), data.draw(st.integers(0, 60))
    assume(int(spoiled[place]) != value)
    spoiled[place] = value
    changed = replace(made, **{name: spoiled})
    try:
        changed.check(TEXT_SIZE, NUM_UNITS, made.units.shape[1])
    except UserError as error:
        assert str(error).startswith("record 'r': ")
        return
    again = [turn for talk in conversations_of(changed) for turn in talk]
    assert len(again) == len(made.turn_roles) and all(turn.has_text or turn.has_speech for turn in again)
    assert np.array_equal(np.concatenate([turn.text_ids for turn in again]), made.text_ids)
    assert np.array_equal(np.concatenate([turn.units for turn in again]), made.units)
    for turn in again:
        assert not turn.is_aligned or (turn.word_text_ends[-1], turn.word_unit_ends[-1]) == (
            len(turn.text_ids),
            len(turn.units),
        )


def taken_apart(sequence: Sequence, ids: Vocabulary) -> list[list[tuple[str, set[int], set[int]]]]:
    """Documents as turns: the role, places that are scored, and places of EOS; from the tokens alone."""
    roles = {USER: "user", ASSISTANT: "assistant", SYSTEM: "system"}
    documents: list[list[tuple[str, set[int], set[int]]]] = []
    for place in range(sequence.length):
        token, speech = int(sequence.tokens[0, place]), bool(sequence.is_speech[place])
        if place in sequence.document_starts:
            assert not speech and token in roles, "a document begins with a role"
            documents.append([])
        if not speech and token in roles:
            documents[-1].append((roles[token], set(), set()))
            assert not sequence.scored[place]
            continue
        if sequence.scored[place]:
            documents[-1][-1][1].add(place)
        elif not speech and token == ids.switch:
            continue
        elif documents[-1][-1][0] == "assistant":
            raise AssertionError(f"{place} of an answer is not scored")
        if token == (ids.speech_eos if speech else EOS):
            documents[-1][-1][2].add(place)
    return documents


@given(talks=conversations(), length=st.integers(4, 160), strategy=st.sampled_from(ANSWERS), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_sequence_scores_answers_and_ends(
    talks: list[list[Turn]], length: int, strategy: Strategy, seed: int
) -> None:
    talks = [transcribed(talk, 200 * n) for n, talk in enumerate(talks)]
    made = record(talks)
    ids = vocabulary(made.units.shape[1])
    fits = [bool(_feasible(talk, strategy, ids, length + 1)) for talk in talks]
    try:
        sequence = make(made, strategy, length, seed)
    except UserError as error:
        assert "no answer begins within" in str(error) and not any(fits)
        return
    assert any(fits)
    documents = taken_apart(sequence, ids)
    assert len(documents) == len(sequence.document_starts) <= len(talks)
    is_full = sequence.length == length + 1
    for number, document in enumerate(documents):
        assert document[-1][0] == "assistant", "nothing follows the last answer"
        for place, (role, scored, ends) in enumerate(document):
            if role == "assistant":
                is_cut = is_full and number == len(documents) - 1 and place == len(document) - 1
                assert scored and (is_cut or ends)
            else:
                assert scored <= ends
                if ids.num_codebooks == 1:
                    assert scored == ends and len(ends) == 1
    assert not sequence.scored[sequence.length :].any() and sequence.scored.any()


def _feasible(talk: list[Turn], strategy: Strategy, ids: Vocabulary, size: int) -> bool:
    try:
        STRATEGIES[strategy].check(talk, ids, size)  # type: ignore[attr-defined]
    except UserError:
        return False
    return True


@given(talks=conversations(most=1), length=st.integers(6, 60), strategy=st.sampled_from(ANSWERS))
@settings(max_examples=25, deadline=None)
def test_each_answer_that_can_be_reached_is_trained(talks: list[list[Turn]], length: int, strategy: Strategy) -> None:
    """Of a conversation that is cut, each exchange whose first answer fits begins some sequence, or is inside one."""
    talk = transcribed(talks[0])
    made = record([talk])
    assume(_feasible(talk, strategy, vocabulary(made.units.shape[1]), length + 1))
    seen: set[int] = set()
    for seed in range(40):
        sequence = make(made, strategy, length, seed)
        seen |= set(sequence.tokens[0, : sequence.length][~sequence.is_speech[: sequence.length]].tolist())
        seen |= {-1 - unit for unit in sequence.tokens[0][sequence.is_speech].tolist()}
    head = 0
    while talk[head].role == "system":
        head += 1
    laid = STRATEGIES[strategy].lay_out(  # type: ignore[attr-defined]
        talk, vocabulary(made.units.shape[1]), SPANS, np.random.default_rng(0)
    )
    widths = [
        1 + max(len(turn.text_ids) + len(turn.units), 1) * 3 + 40 if turn.role == "assistant" else tokens.num_tokens
        for turn, tokens in zip(talk, laid, strict=False)
    ]
    for place, turn in enumerate(talk[: len(laid)]):
        if turn.role != "assistant":
            continue
        begin = max(head, max((n + 1 for n in range(place) if talk[n].role == "assistant"), default=0))
        if sum(widths[:head]) + sum(widths[begin : place + 1]) <= length + 1:
            wanted = {int(turn.text_ids[0]), -1 - int(turn.units[0, 0])}
            assert seen & wanted, "an answer that fits with what precedes it is never trained"


class _Least:
    """Draws the least number of each range."""

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        value = 0 if high is None else low
        return value if size is None else np.full(size, value)


@given(talks=conversations(least=2), strategy=st.sampled_from(ANSWERS))
@settings(max_examples=60, deadline=None)
def test_packed_conversations_are_those_one_by_one(talks: list[list[Turn]], strategy: Strategy) -> None:
    talks = [transcribed(talk, 200 * n) for n, talk in enumerate(talks)]
    ids = vocabulary(talks[0][0].units.shape[1])

    def built(some: list[list[Turn]]) -> Sequence:
        return build_sequence(record(some), strategy, ids, 2000, SPANS, _Least())  # type: ignore[arg-type]

    packed, single = built(talks), [built([talk]) for talk in talks]
    begins = [*packed.document_starts, packed.length]
    assert len(single) == len(packed.document_starts)
    for one, begin, end in zip(single, begins[:-1], begins[1:], strict=True):
        assert one.length == end - begin
        for name in ("is_speech", "scored"):
            assert np.array_equal(getattr(packed, name)[begin:end], getattr(one, name)[: one.length])
        assert np.array_equal(packed.tokens[:, begin:end], one.tokens[:, : one.length])


@given(talks=conversations(most=1), strategy=st.sampled_from(ANSWERS), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_packing_never_underestimates(talks: list[list[Turn]], strategy: Strategy, seed: int) -> None:
    made = record([transcribed(talks[0])])
    most = STRATEGIES[strategy].most_tokens(  # type: ignore[attr-defined]
        transcribed(talks[0]), vocabulary(made.units.shape[1])
    )
    length = make(made, strategy, 3000, seed, InterleavingConfig(text_words=(1, 1), speech_words=(1, 1))).length
    assert length <= most and (length == most or strategy == "answer_interleaved")


def test_the_loss_sees_answers_and_ends_only() -> None:
    """Targets that are not scored change nothing; what others say, as context, does; and so does what is scored."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = SmolTolk(
        Architecture(
            **shape, ffn_hidden_size=16, text_vocab_size=TEXT_SIZE, rope_theta=1e4, rms_norm_eps=1e-5,
            tie_text_embeddings=True, initializer_range=0.5, num_units=NUM_UNITS, num_codebooks=1,
            input_adapter_layers=1, output_adapter_layers=1, layer_pooling="both", residual=True,
            special_tokens=TOKENS,
        ),
        seed=1,
    )  # fmt: skip

    def loss(sequence: Sequence, targets: torch.Tensor | None = None) -> float:
        batch = collate([sequence])
        if targets is not None:
            batch.targets = targets
            batch.__post_init__()
        with torch.no_grad():
            sums = model(ModelInputs.from_batch(batch))
        return float(sums.text_nll + sums.speech_nll)

    for strategy in ANSWERS:
        sequence = make(record([story()]), strategy, 50)
        batch = collate([sequence])
        scored, speech = (batch.text_pred | batch.speech_pred)[0], batch.tokens.new_zeros(50, dtype=torch.bool)
        speech[: len(sequence.is_speech) - 1] = torch.from_numpy(sequence.is_speech[1:])
        before = loss(sequence)
        others = batch.targets.clone()
        others[0, 0, ~scored] = 7
        assert loss(sequence, others) == before
        for place in torch.nonzero(scored)[:, 0].tolist():
            one = batch.targets.clone()
            one[0, 0, place] = 17
            assert loss(sequence, one) != before, place
        heard = int(np.flatnonzero(sequence.is_speech)[0])  # the first unit of the question
        tokens = sequence.tokens.copy()
        tokens[0, heard] += 1
        assert loss(replace(sequence, tokens=tokens)) != before


@pytest.mark.parametrize(
    ("strategy", "turn", "message"),
    [
        (
            "answer_text",
            {"text": False, "speech": True},
            "turn 2: the turn of the role assistant has no text; use another strategy",
        ),
        ("answer_speech", {"text": True, "speech": False}, "turn 2: the turn of the role assistant has no speech"),
        (
            "answer_interleaved",
            {"text": True, "speech": True},
            "turn 2: the turn of the role assistant has no word alignment",
        ),
        ("answer_chain", {"text": True, "speech": False}, "turn 2: the turn of the role assistant has no speech"),
    ],
)
def test_what_a_strategy_lacks_is_named(strategy: Strategy, turn: dict[str, bool], message: str) -> None:
    numbers = Numbers()
    talk = [
        numbers.turn("user", [(1, 1)], True, False, False, 1),
        numbers.turn("assistant", [(1, 1)], **turn, aligned=False, books=1),
    ]
    with pytest.raises(UserError, match=f"record 'r', strategy '{strategy}': {message}"):
        make(record([talk]), strategy, 30)
    with pytest.raises(UserError, match=r"no special token '<\|cat\|>' .*set model.special_tokens to .*<\|cat\|>"):
        make(record([[replace(talk[0], role="cat"), talk[1]]]), strategy, 30)
    with pytest.raises(UserError, match="holds records of the kind 'conversation', and the strategy 'text' reads"):
        make(record([talk]), "text", 30)


def test_roles_of_a_record_are_a_list() -> None:
    sample = record([story()]).to_sample()
    assert json.loads(sample["roles"]) == ["assistant", "system", "user"]
    for key, value, message in (
        ("roles", "{", "not a JSON list"),
        ("kind", "passage", "its kind 'passage' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            Record.from_sample({**sample, key: value})
