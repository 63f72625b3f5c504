"""Conversations: contexts as in training, answers of a model that knows one by heart, limits, and the command."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_continuations import SETTINGS, small_model
from tuned_run import ROLES, Tuned, write_tuned

from tolktrain import cli
from tolktrain.config.data import InterleavingConfig
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.data.turns import Turn, record_of
from tolktrain.errors import UserError
from tolktrain.generate.chat.dialogue import Answer, ChatLimits, Dialogue, Listener
from tolktrain.generate.chat.forms import FORMS, Form, chosen_form, tuned_form
from tolktrain.generate.chat.run import Chatting, answer_scripts, converse
from tolktrain.generate.chat.scripts import read_scripts
from tolktrain.generate.context import Context
from tolktrain.generate.mixed_decoding import CachedMixedDecoder, MixedDecoder, PlainMixedDecoder
from tolktrain.generate.settings import Drawing
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.vocabulary import Vocabulary

GREEDY = Drawing(temperature=0.0)
SPANS = InterleavingConfig(text_words=(1, 2), speech_words=(1, 2))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Tuned:
    """A model that knows a conversation, as a chain of modalities."""
    return write_tuned(tmp_path_factory.mktemp("tuned"), repository)


def _continuer(vocabulary: Vocabulary, window: int = 10_000, model: SmolTolk | None = None) -> Any:
    """What a dialogue needs of a continuer; text ids are words."""
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    return SimpleNamespace(
        vocabulary=vocabulary,
        window=window,
        model=model,
        config=SimpleNamespace(data=SimpleNamespace(interleaving=SPANS)),
        text=SimpleNamespace(tokenizer=tokenizer),
        durations=SimpleNamespace(seconds=lambda units: 0.1 * len(units)),
    )


def _dialogue(continuer: Any, form: Form, decoder: Any = None, **limits: Any) -> Dialogue:
    return Dialogue(continuer, decoder, form, SETTINGS, ChatLimits(**limits))


def _turn(role: str, text: int = 0, speech: int = 0, books: int = 1, aligned: bool = False) -> Turn:
    """Of so many text ids and units."""
    ends = np.arange(1, text + 1), np.arange(1, text + 1) * (speech // max(text, 1))
    words = {"word_text_ends": ends[0], "word_unit_ends": ends[1]} if aligned else {}
    units = np.arange(speech * books).reshape(speech, books) % 50
    return Turn(role, np.arange(1, text + 1), units, np.ones(speech, np.int64), **words)


@pytest.mark.parametrize("books", [1, 3])
@pytest.mark.parametrize("form", list(FORMS))
def test_the_context_is_the_prefix_of_the_training_sequence(form: Form, books: int) -> None:
    """Before each answer: roles, EOS of each turn, switches, and the opened turn of the assistant. Spans of interleaved
    answers are drawn, so earlier ones are a single word here."""
    vocabulary = Vocabulary(40, 0, 50, books, tuple(ROLES))
    talk = [
        _turn("system", text=3),
        _turn("user", 4, 9, books),
        _turn("user", text=2),
        _turn("assistant", 1, 5, books, aligned=True),
        _turn("user", 2, 3, books),
        _turn("assistant", 1, 4, books, aligned=True),
        _turn("user", text=1),
        _turn("assistant", 3, 6, books, aligned=True),
    ]
    record = record_of("r", "here", [talk], books, "conversation")
    for seed in range(8):  # of the first modality of interleaved answers
        whole = build_sequence(record, FORMS[form], vocabulary, 300, SPANS, sequence_rng(seed, "r", 0, "sequence"))
        matched = 0
        for place in (3, 5, 7):
            dialogue = _dialogue(_continuer(vocabulary), form)
            for turn in talk[:place]:
                dialogue.add(turn)
            context = Context.of_segments(dialogue.prompt(), vocabulary)
            size = len(context)
            same = np.array_equal(context.tokens, whole.tokens[:, :size])
            same &= np.array_equal(context.is_speech, whole.is_speech[:size])
            assert same or (form == "interleaved" and place > 3)
            assert context.tokens[0, -1] == vocabulary.role_token("assistant")
            matched += same
        if matched == 3 and form == "interleaved":
            break
    assert matched == 3


@pytest.mark.slow
def test_the_context_is_what_prepare_makes_of_the_same_lines(tuned: Tuned, tmp_path: Path) -> None:
    """Text, audio and transcripts; and the answers of a model that knows the conversation are those of the data."""
    file = tmp_path / "open.jsonl"
    first, second, third, fourth, _ = tuned.messages
    for message in (second, third):
        message["content"][0]["path"] = str(tuned.folder / message["content"][0]["path"])
    lines = [
        {"messages": [first, second, {"role": "assistant", "content": None}, fourth], "name": "drawn"},
        {"messages": [first, second, third, fourth], "name": "given"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    shown: list[str] = []
    answer_scripts(tuned.run, read_scripts(str(file)), Chatting(drawing=GREEDY, into=tmp_path / "out"), shown.append)
    drawn, given_ = (json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines())
    one, two = drawn["answers"]
    assert [answer["ended"] for answer in drawn["answers"]] == ["EOS", "EOS"]
    assert one["answer"] == "chain" and one["heard"] == ["where is the bird"] and one["text"] == "in the tree"
    assert two["heard"] == [] and two["text"] == "no"
    expected = tuned.sequence("answer_chain")
    ends = np.flatnonzero(expected.tokens[0] == tuned.vocabulary.role_token("assistant")) + 1
    assert [answer["timing"]["prompt_positions"] for answer in (one, two)] == ends.tolist()
    assert given_["answers"] == [
        two | {"turn": 5, "timing": given_["answers"][0]["timing"], "file": "given-turn-5.wav"}
    ]
    units = tuned.record.units[:, 0].tolist()
    assert [unit for (unit,) in two["units"]] == units[-len(two["units"]) :]
    for answer in (one, two):
        samples, rate = soundfile.read(tmp_path / "out" / answer["file"])
        assert rate == 16_000 and len(samples) > 1_000
    text = "".join(shown)
    assert text.startswith("drawn, turn 3: (heard: where is the bird) in the tree [")
    assert f"] {one['file']}\ndrawn, turn 5: no [" in text
    assert drawn["messages"][2]["content"] == [{"type": "audio", "path": "drawn-turn-3.wav", "text": "in the tree"}]
    settings_ = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings_["answer"] == "chain" and settings_["temperature"] == 0.0


def _held(
    make: Callable[[SmolTolk], MixedDecoder], form: Form, books: int, window: int = 10_000, **limits: Any
) -> tuple[list[Answer], Dialogue]:
    """Three exchanges with a random model."""
    model, small = small_model(num_codebooks=books, special_tokens=tuple(ROLES))
    vocabulary = replace(small, special_tokens=tuple(ROLES))
    dialogue = _dialogue(_continuer(vocabulary, window, model), form, make(model), **{"length": 9, **limits})
    dialogue.add(_turn("system", text=2))
    answers = []
    for turn in (_turn("user", 3, 4, books), _turn("user", text=2), _turn("user", speech=5, books=books)):
        dialogue.add(turn)
        answers.append(dialogue.answer())
    return answers, dialogue


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("books", [1, 3])
def test_caches_that_go_from_turn_to_turn_change_no_token(form: Form, books: int) -> None:
    """The same with and without caches, also when exchanges are left out; what is kept is what was drawn, with EOS."""
    longest = _held(PlainMixedDecoder, form, books)[0][-1].prompt_positions
    for window in (10_000, longest + 4):
        found, dialogue = _held(lambda model: CachedMixedDecoder(model, 400), form, books, window)
        wanted, _ = _held(PlainMixedDecoder, form, books, window)
        for one, other in zip(found, wanted, strict=True):
            assert (one.heard, one.text_ids, one.ending) == (other.heard, other.text_ids, other.ending)
            assert one.units.tolist() == other.units.tolist()
        assert (found[-1].left_out > 0) == (window < 1_000), [answer.prompt_positions for answer in found]
        assert sum(turn.num_tokens for turn in dialogue.laid) <= window
        assert dialogue.turns[0].is_instruction
        for laid in dialogue.laid:
            last = laid.segments[-1].ids[-1]
            assert np.all(last == (50 if laid.segments[-1].kind == "speech" else 0)), "every turn ends with EOS"


def test_a_full_context_leaves_out_whole_exchanges() -> None:
    """The context is that of the conversation without them, and the instruction stays."""
    vocabulary = Vocabulary(40, 0, 50, 1, tuple(ROLES))
    talk = [_turn("system", text=3)]
    for count in (5, 9, 7):
        talk += [_turn("user", speech=count), _turn("user", text=2), _turn("assistant", text=count)]
    talk.append(_turn("user", text=4))
    whole = _dialogue(_continuer(vocabulary), "text")
    for turn in talk:
        whole.add(turn)
    size = sum(turn.num_tokens for turn in whole.laid) + 1
    for window, begin in ((4 * size // 3 + 2, 1), (4 * size // 3 - 2, 4), (70, 7), (32, 10), (14, 10)):
        dialogue, shorter = (_dialogue(_continuer(vocabulary, size), "text", length=1000) for size in (window, 10_000))
        for turn in talk:
            dialogue.add(turn)
        for turn in (talk[0], *talk[begin:]):
            shorter.add(turn)
        found, wanted = (Context.of_segments(one.prompt(), vocabulary) for one in (dialogue, shorter))
        assert np.array_equal(found.tokens, wanted.tokens) and dialogue.left_out == begin - 1
    dialogue = _dialogue(_continuer(vocabulary, 13), "text")
    for turn in talk:
        dialogue.add(turn)
    with pytest.raises(UserError, match=r"have 12 positions, and the context .* is 13, so no answer fits"):
        dialogue.prompt()


class _Endless(CachedMixedDecoder):
    """Of a model that never draws EOS."""

    def read(self, context: Context, modality: Any) -> torch.Tensor:
        logits = super().read(context, modality).clone()
        logits[..., 0 if modality == "text" else 50] = -torch.inf
        return logits


@pytest.mark.parametrize(
    ("form", "limits", "window", "ending"),
    [
        ("text", {"length": 5}, 1_000, "length"),
        ("speech", {"length": 5}, 1_000, "length"),
        ("speech", {"length": 50, "seconds": 0.35}, 1_000, "seconds"),
        ("chain", {"length": 500}, 80, "context"),
        ("interleaved", {"length": 500, "seconds": 1.0}, 1_000, "seconds"),
        ("interleaved", {"length": 500}, 90, "context"),
    ],
)
def test_answers_that_do_not_end_are_reported(form: Form, limits: Any, window: int, ending: str) -> None:
    model, small = small_model(special_tokens=tuple(ROLES))
    vocabulary = replace(small, special_tokens=tuple(ROLES))
    dialogue = _dialogue(_continuer(vocabulary, window, model), form, _Endless(model, window), **limits)
    dialogue.add(_turn("user", speech=6))
    heard: list[Any] = []
    listener = Listener(heard.append, heard.append, lambda frame: heard.append(int(frame[0])))
    answer = dialogue.answer(listener)
    assert answer.ending == ending and answer.remark is not None and "did not end by itself" in answer.remark
    assert len(answer.text_ids) <= limits["length"] and len(answer.units) <= limits["length"]
    assert [unit for unit in heard if isinstance(unit, int)] == answer.units[:, 0].tolist()
    kinds = [kind for kind in heard if kind in ("heard", "text", "speech")]
    if form == "interleaved":
        assert kinds[:4] == ["text", "speech", "text", "speech"]
        # Spans of one word each, as words are ids here; nothing that was shown is missing in the answer.
        streamed = "".join(x for x in heard if isinstance(x, str) and x not in kinds)
        assert answer.text.replace(" ", "") == streamed.replace(" ", "")


@pytest.mark.slow
def test_a_conversation_at_the_terminal(tuned: Tuned, tmp_path: Path) -> None:
    """Typed and spoken turns, commands, a file that cannot be read, and a new conversation."""
    lines = [
        "/audio nowhere.wav",
        f"/audio {tuned.folder / 'q.wav'}",
        "does it sing",
        "/what",
        "/new",
        f"/audio {tuned.folder / 'q.wav'}",
        "/end",
        "never read",
    ]
    shown: list[str] = []
    options = Chatting(drawing=GREEDY, system="be kind", into=tmp_path / "out")
    converse(tuned.run, [f"{line}\n" for line in lines], options, shown.append)
    text = "".join(shown)
    assert "nowhere.wav is not a readable audio file" in text and "unknown command '/what'" in text
    assert text.count("assistant: (heard: where is the bird) in the tree [") == 2 and "assistant: no [" in text
    first, second = (json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines())
    assert [message["role"] for message in first["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [answer["turn"] for answer in first["answers"]] == [3, 5] and len(second["answers"]) == 1
    assert (tmp_path / "out" / "conversation-1-turn-5.wav").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ('{"messages": []}', "a list `messages` that is not empty"),
        ('{"messages": [{"role": "user", "content": "a"}], "to": "text"}', "the key 'to' is unknown"),
        ('{"messages": [{"role": "user", "content": "a"}], "answer": "song"}', "answer is 'song'; use text, speech"),
        ('{"messages": [{"role": "user", "content": "a"}], "name": "a/b"}', "slash"),
        ('{"messages": [{"role": "user", "content": "a"}], "name": "' + "n" * 201 + '"}', "longer than 200 bytes"),
        ('{"messages": [{"role": "user", "content": "a"}], "name": "line-1"}', "used before"),
        ('{"messages": [{"role": "user"}]}', "turn 1 needs role and content"),
        ('{"messages": [{"role": "user", "content": null}]}', "turn 1: content must be a list"),
        (
            '{"messages": [{"role": "user", "content": "a", "tone": 1}]}',
            "turn 1: the key 'tone' of messages is unknown",
        ),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "every turn is given"),
        ('{"messages": [{"role": "user", "content": [{"type": "image", "path": "a"}]}]}', "has the type 'image'"),
    ],
)
def test_lines_that_are_no_conversations(tmp_path: Path, line: str, message: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}]}\n'
    (tmp_path / "x.jsonl").write_text(good + line)
    with pytest.raises(UserError, match=rf"x\.jsonl, line 2.*{message}"):
        list(read_scripts(str(tmp_path / "x.jsonl")))


@pytest.mark.slow
def test_the_command(
    tuned: Tuned, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines from standard input; the same seed gives the same; mistakes."""
    question = json.dumps({"messages": [{"role": "user", "content": "does it sing"}], "answer": "text"}).encode()
    found = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(question)))
        options = ["--chat", "-", "--seed", seed, "--temperature", "3", "--length", "6"]
        assert cli.main(["generate", str(tuned.run), *options]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] != found[2] and found[0].startswith("line-1, turn 2: ")
    monkeypatch.setattr("sys.stdin", io.StringIO("does it sing\n"))
    assert cli.main(["generate", str(tuned.run), "--chat", "--answer", "speech", "--length", "4"]) == 0
    assert "assistant: [" in capsys.readouterr().out
    unknown = json.dumps({"messages": [{"role": "robot", "content": "a"}, {"role": "user", "content": "b"}]}).encode()
    for run, options, message in (
        (tiny_run, ["--chat", "-"], "is a base model: it lacks the tokens <|user|> and <|assistant|>"),
        (tuned.run, ["--chat", "-"], "standard input, line 1: turn 1: the model has no special token '<|robot|>'"),
        (tuned.run, ["--chat", "-", "--to", "text"], "--to has no effect on conversations"),
        (tuned.run, ["--chat", "-", "--text", "a"], "--text has no effect on conversations"),
        (tuned.run, ["--system", "a"], "--system belongs to conversations; give --chat, too"),
    ):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(unknown)))
        assert cli.main(["generate", str(run), *options]) == 2
        assert message in capsys.readouterr().err


def test_the_form_is_that_of_the_training() -> None:
    """The largest weight in the last stage that trains answers."""
    entry = lambda weight: SimpleNamespace(weight=weight)  # noqa: E731

    def form(*mixtures: Any) -> Form | None:
        stages = [SimpleNamespace(mixture=mixture) for mixture in mixtures]
        return tuned_form(SimpleNamespace(train=SimpleNamespace(stages=stages)))  # type: ignore[arg-type]

    assert form({"speech": entry(1)}) is None
    assert (
        form({"answer_text": entry(3)}, {"text": entry(9), "answer_speech": entry(1), "answer_chain": entry(2)})
        == "chain"
    )
    assert form({"answer_text": entry(1), "answer_interleaved": entry(1)}, {"text": entry(1)}) == "text"
    weights: Any = SimpleNamespace(train=SimpleNamespace(stages=()))
    assert chosen_form("speech", weights, "weights") == "speech"
    with pytest.raises(UserError, match="weights does not record .*--answer text, speech, interleaved, chain"):
        chosen_form(None, weights, "weights")
