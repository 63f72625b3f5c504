"""Dialogues in each format, from files written here, to the turns of records."""

import json
import math
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain import cli
from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.folder import open_records
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import STRATEGIES, build_sequence
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.data.turns import Turn, conversations_of
from tolktrain.errors import UserError
from tolktrain.prepare.dialogue.kind import DialogueKind, cut
from tolktrain.prepare.dialogue.talk import Said
from tolktrain.prepare.job.passages import Piece
from tolktrain.prepare.utterances import EntryError, Failure
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.vocabulary import Vocabulary

RATE = 16_000
Prepared = tuple[list[Record], list[Failure]]


def write_wav(path: Path, *channels: list[tuple[float, float]]) -> None:
    """Tones of (frequency, seconds) in turn in each channel; frequency 0 is silence."""
    columns = []
    for channel in channels:
        column: list[int] = []
        for frequency, seconds in channel:
            for place in range(round(seconds * RATE)):
                tone = math.sin(2 * math.pi * frequency * place / RATE) * math.sin(2 * math.pi * 3 * place / RATE)
                column.append(round(9000 * tone))
        columns.append(column)
    length = max(map(len, columns))
    columns = [column + [0] * (length - len(column)) for column in columns]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(columns))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(b"".join(struct.pack(f"<{len(columns)}h", *row) for row in zip(*columns, strict=True)))


@pytest.fixture(scope="module")
def sample(repository: Path) -> Path:
    return repository / "data" / "sample"


@pytest.fixture
def prepared(tmp_path: Path, sample: Path) -> Callable[..., Prepared]:
    """Prepares lines of dialogues; audio is relative to the folder of the test."""

    def prepare(lines: list[Any], *, text: bool = True, speech: bool = True, **options: Any) -> Prepared:
        content = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "d.jsonl").write_text("".join(line + "\n" for line in content))
        dialogue = {"files": [str(tmp_path / "d.jsonl")], "strategies": ["answer_text"], "sequence_length": 400}
        if speech:
            dialogue["speech_tokenizer"] = str(sample / "speech_tokenizer")
        config = PrepareConfig.model_validate(
            {
                "name": "d",
                "output": str(tmp_path / "out"),
                "heldout": {"sources": 0.0, "speakers": 0.0},
                "text_tokenizer": str(sample / "text_tokenizer") if text else None,
                "dialogue": {**dialogue, "bounds": {"min_words_per_second": None}, **options},
            }
        )
        kind = DialogueKind(config)
        prepare.unused = kind.unused  # type: ignore[attr-defined]
        parts, failures = kind.parts()
        found = [item for part in parts for item in kind.records(part)]
        assert sum(item for item in found if isinstance(item, int)) == len(lines)
        records = [item[1] for item in found if isinstance(item, tuple)]
        for record in records:
            record.check(1024, 500)
        return records, [*failures, *(item for item in found if isinstance(item, Failure))]

    return prepare


def turns(records: list[Record]) -> list[list[Turn]]:
    return [talk for record in records for talk in conversations_of(record)]


def texts(talk: list[Turn], sample: Path) -> list[tuple[str, str, bool]]:
    """Role, text and whether there is speech of each turn."""
    decode = load_text_tokenizer(sample / "text_tokenizer").tokenizer.decode
    return [(turn.role, decode(turn.text_ids.tolist()).strip(), turn.has_speech) for turn in talk]


def units_of(path: Path, sample: Path, begin: float = 0.0, end: float | None = None, channel: int = 0) -> list[int]:
    """Of a file that is read with the standard library."""
    with wave.open(str(path), "rb") as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    waveform = raw[round(begin * RATE) : None if end is None else round(end * RATE), channel].astype(np.float32) / 32768
    units = load_speech_tokenizer(sample / "speech_tokenizer").encode(waveform)[:, 0].tolist()
    return [unit for place, unit in enumerate(units) if not place or unit != units[place - 1]]


def test_chats_of_text(prepared: Callable[..., Prepared], sample: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "the bird?"}, {"role": "assistant", "content": "It flew\nhome."}]},
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox?"}]},
                {"role": "assistant", "content": "It ran."},
            ]
        },
        {"conversations": [{"from": "human", "value": "a dog?"}, {"from": "gpt", "value": "Yes."}]},
    ]
    records, failures = prepared(chats, speech=False)
    assert not failures and len(records) == 1 and records[0].id == "d.jsonl:1"
    assert [texts(talk, sample) for talk in turns(records)] == [
        [("user", "the bird?", False), ("assistant", "It flew\nhome.", False)],
        [("system", "be kind", False), ("user", "the fox?", False), ("assistant", "It ran.", False)],
        [("user", "a dog?", False), ("assistant", "Yes.", False)],
    ]


def test_chats_with_audio(prepared: Callable[..., Prepared], sample: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "q.wav", [(300, 0.6), (900, 0.5)])
    write_wav(tmp_path / "a.wav", [(500, 0.5), (1500, 0.7)])
    audio = {"type": "audio", "path": "q.wav"}
    answer = {"type": "audio", "path": "a.wav", "text": "the bird", "words": [["the", 0.0, 0.5], ["bird", 0.5, 1.2]]}
    lines = [
        {"messages": [{"role": "user", "content": [audio]}, {"role": "assistant", "content": [answer]}]},
        {
            "messages": [
                {"role": "user", "content": [{**audio, "text": "where"}, {"type": "text", "text": "Repeat."}]},
                {"role": "assistant", "content": "where"},
            ]
        },
    ]
    records, failures = prepared(lines, text_with_audio="separate")
    assert not failures
    first, second = turns(records)
    assert texts(first, sample) == [("user", "", True), ("assistant", "the bird", True)]
    assert texts(second, sample) == [("user", "where", True), ("user", "Repeat.", False), ("assistant", "where", False)]
    assert first[0].units[:, 0].tolist() == units_of(tmp_path / "q.wav", sample) == second[0].units[:, 0].tolist()
    assert len(first[1].word_text_ends) == 2 and not second[0].is_aligned
    frames = int(first[1].run_lengths[: int(first[1].word_unit_ends[0])].sum())
    assert abs(frames / 25 - 0.5) <= 0.08, "the first word ends at half a second"
    content = [{"type": "text", "text": "where"}, audio]
    both = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Rome"}]}]
    _, failures = prepared(both)
    assert "turn 1 has text and audio; set dialogue.text_with_audio to transcript" in failures[0].detail
    records, _ = prepared(both, text_with_audio="transcript")
    assert texts(turns(records)[0], sample)[0] == ("user", "where", True)


def test_chats_of_swift(prepared: Callable[..., Prepared], sample: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "q.wav", [(300, 0.6), (900, 0.5)])
    answer = {"role": "assistant", "content": "Rome."}
    lines = [
        {"messages": [{"role": "user", "content": "<audio>q.wav</audio>What is said?"}, answer]},
        {"messages": [{"role": "user", "content": "<audio>What is said?"}, answer], "audios": ["q.wav"], "system": "x"},
        {"messages": [{"role": "user", "content": "<audio>And?"}, answer]},
        {"messages": [{"role": "user", "content": "And?"}, answer], "audios": ["q.wav"]},
    ]
    records, failures = prepared(lines, text_with_audio="separate")
    first, second = turns(records)
    assert texts(first, sample) == [("user", "", True), ("user", "What is said?", False), ("assistant", "Rome.", False)]
    assert [turn.role for turn in second] == ["system", "user", "user", "assistant"]
    assert first[0].units.tolist() == second[1].units.tolist()
    assert [failure.place.rpartition(" ")[2] for failure in failures] == ["3", "4"]
    assert "turn 1 has a tag <audio> without a path" in failures[0].detail
    assert "audios has 1 more files than the messages have tags" in failures[1].detail


def test_stereo_dialogues(prepared: Callable[..., Prepared], sample: Path, tmp_path: Path) -> None:
    """Left answers, right asks; the turns of the right channel are those that are heard, or those of its words."""
    left = [(0, 2.0), (500, 0.8), (1500, 0.8), (0, 2.0), (700, 0.8)]
    right = [(300, 0.9), (900, 0.6), (0, 2.6), (400, 1.0)]
    write_wav(tmp_path / "a.wav", left, right)
    main = [
        ["the", [2.0, 2.8], "SPEAKER_MAIN"],
        ["bird", [2.8, 3.6], "SPEAKER_MAIN"],
        ["yes", [5.6, 6.4], "SPEAKER_MAIN"],
    ]
    (tmp_path / "a.json").write_text(json.dumps({"alignments": main}))
    line = {"path": "a.wav", "duration": 6.4}
    records, failures = prepared([line], strategies=["answer_interleaved"])
    assert not failures
    [talk] = turns(records)
    assert texts(talk, sample) == [
        ("user", "", True),
        ("assistant", "the bird", True),
        ("user", "", True),
        ("assistant", "yes", True),
    ]
    assert talk[1].units[:, 0].tolist() == units_of(tmp_path / "a.wav", sample, 2.0, 3.6)
    assert abs(int(talk[2].run_lengths.sum()) / 25 - 1.2) < 0.2, "a second, and a margin on both sides"
    records, _ = prepared([line], strategies=["answer_chain"], alignment={"method": "none"}, text=True)
    assert not records, "the questions have no text that could be said to be heard"
    records, _ = prepared([line], alignment={"method": "none"})
    assert (
        texts(turns(records)[0], sample)[1] == ("assistant", "the bird", True) and not turns(records)[0][1].is_aligned
    )
    [item] = prepared.unused.take()  # type: ignore[attr-defined]
    assert item.what == "word times, because dialogue.alignment.method is not given"
    other = [["where", [0.1, 0.9], "SPEAKER_1"], ["is", [0.9, 1.5], "SPEAKER_1"], ["and", [4.1, 5.1], "SPEAKER_1"]]
    (tmp_path / "a.json").write_text(json.dumps({"alignments": main + other}))
    records, failures = prepared([line], strategies=["answer_chain"])
    assert [said for _, said, _ in texts(turns(records)[0], sample)] == ["where is", "the bird", "and", "yes"]
    assert turns(records)[0][0].units[:, 0].tolist() == units_of(tmp_path / "a.wav", sample, 0.1, 1.5, channel=1)
    (tmp_path / "a.json").write_text(json.dumps({"alignments": [["the", [2.0], "SPEAKER_MAIN"]]}))
    _, failures = prepared([line], strategies=["answer_speech"])
    assert "a.json: word 1: expected [word, [start, end], speaker]" in failures[0].detail


def test_tagged_transcripts(prepared: Callable[..., Prepared], sample: Path) -> None:
    lines = [
        {"file_path": "x.wav", "full_transcript": "[S1]where is it?[S2] in Rome.[S1]and you?[S2]me too.[S2]yes"},
        {"full_transcript": "hello[S1]x"},
        {"full_transcript": "[S1]x[S2] "},
    ]
    records, failures = prepared(lines, roles={"S1": "user", "S2": "assistant"}, speech=False)
    assert texts(turns(records)[0], sample) == [
        ("user", "where is it?", False),
        ("assistant", "in Rome.", False),
        ("user", "and you?", False),
        ("assistant", "me too. yes", False),
    ]
    assert "must begin with the tag of a speaker" in failures[0].detail and "turn 2 ([S2]) is" in failures[1].detail
    [item] = prepared.unused.take()  # type: ignore[attr-defined]
    assert item.what.startswith("recordings of tagged transcripts, because dialogue.alignment.method is not ctc")


def test_a_recording_is_cut_where_turns_end() -> None:
    """What an aligner gives for a whole recording, by hand: three words, of which two are the first turn's."""
    piece = Piece(
        "r", np.arange(5), np.arange(8)[:, None], np.ones(8, np.int64), np.array([1, 3, 5]), np.array([2, 5, 8])
    )
    first, second = cut(piece, [Said("user", "a b"), Said("assistant", "c")])
    assert (first.text_ids.tolist(), first.units[:, 0].tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4])
    assert (second.text_ids.tolist(), second.units[:, 0].tolist()) == ([3, 4], [5, 6, 7])
    assert (first.word_text_ends.tolist(), first.word_unit_ends.tolist()) == ([1, 3], [2, 5])
    assert (second.word_text_ends.tolist(), second.word_unit_ends.tolist()) == ([2], [3])
    with pytest.raises(EntryError, match="has 3 aligned words, the turns have 4"):
        cut(piece, [Said("user", "a b"), Said("assistant", "c d")])


def test_preferences(prepared: Callable[..., Prepared], sample: Path, tmp_path: Path) -> None:
    for name, frequency in (("q", 300), ("good", 500), ("bad", 800)):
        write_wav(tmp_path / f"{name}.wav", [(frequency, 0.6), (2 * frequency, 0.5)])
    spoken = {"prompt_path": "q.wav", "chosen_path": "good.wav", "rejected_path": "bad.wav"}
    ask = {"role": "user", "content": "where?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("in Rome", "in Paris"))
    lines = [
        spoken,
        {"prompt": "where?", "chosen": "in Rome", "rejected": "in Paris"},
        {"prompt": [ask], "chosen": [good], "rejected": [bad]},
        {"chosen": [ask, good], "rejected": [ask, bad]},
        {"chosen": [ask, good], "rejected": [{"role": "user", "content": "who?"}, bad]},
        {"prompt": "where?", "chosen": "in Rome", "rejected": "in Rome"},
        {"prompt": "where?", "chosen": "in Rome", "rejected_path": "bad.wav"},
    ]
    records, failures = prepared(lines, strategies=["preference"], sequence_length=200)
    talks = turns(records)
    assert [turn.units[:, 0].tolist() for talk in talks[:2] for turn in talk] == [
        units_of(tmp_path / f"{name}.wav", sample) for name in ("q", "good", "q", "bad")
    ]
    wanted = [[("user", "where?", False), ("assistant", text, False)] for text in ("in Rome", "in Paris")]
    assert [texts(talk, sample) for talk in talks[2:]] == wanted * 3
    reasons = ["differ before their last turns", "are the same", "have neither text nor speech in common"]
    assert all(reason in failure.detail for reason, failure in zip(reasons, failures, strict=True))
    _, failures = prepared([lines[1]], strategies=["preference"], sequence_length=8)
    assert "and a sequence has 9; raise dialogue.sequence_length" in failures[0].detail
    with pytest.raises(UserError, match="was read as preference, which serves preference; set dialogue.strategies"):
        prepared(lines)


def test_what_cannot_be_used_is_named(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    ask, answer = {"role": "user", "content": "where?"}, {"role": "assistant", "content": "in Rome"}
    lines = [
        {"messages": [ask, answer], "split": "x"},
        "{",
        {"messages": []},
        {"messages": [ask, {"role": "assistant"}]},
        {"messages": [ask, {"role": "assistant", "content": [{"type": "image", "path": "x.png"}]}]},
        {"messages": [ask, {"role": "assistant", "content": [{"type": "audio", "path": "none.wav"}]}]},
        {"messages": [ask]},
        {"messages": [{"role": "user", "content": "where " * 500}, answer]},
        {"messages": [ask, answer, ask]},
        {"messages": [ask, {"role": "assistant", "content": "  "}]},
    ]
    records, failures = prepared(lines)
    assert len(turns(records)) == 2
    assert [int(failure.place.rpartition(" ")[2]) for failure in failures] == [2, 3, 4, 5, 6, 7, 8, 10]
    wanted = [
        "the line is not JSON", "messages must be a list that is not empty", "turn 2 needs role and content",
        "turn 2, part 1 has the type 'image'", "turn 2 (assistant): .*none.wav does not exist",
        "answer_text: it has no turn of the assistant", "nothing would be scored; raise dialogue.sequence_length",
        "turn 2 is empty",
    ]  # fmt: skip
    for failure, message in zip(failures, wanted, strict=True):
        first, _, last = message.partition(".*")
        assert first in failure.detail and last in failure.detail, failure
        assert failure.place.startswith(str(tmp_path / "d.jsonl line "))
    kinds = {item.what for item in prepared.unused.take()}  # type: ignore[attr-defined]
    assert kinds == {"the key 'split'", "turns after the last answer"}
    with pytest.raises(UserError, match=r"the format cannot be recognized: the first object has the keys 'a'"):
        prepared([{"a": 1}])


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.floats(), st.integers(-3, 3), st.sampled_from(["user", "assistant", "x", ""])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "path", "messages", "from"]), inner, max_size=4
        ),
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.sampled_from(["where?", "in Rome", " ", "a"]),
    }
)


@given(
    messages=st.lists(st.one_of(MESSAGE, MESSAGE, JSON), max_size=5), key=st.sampled_from(["messages", "chosen", "x"])
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_line_holds_it_is_used_or_a_failure(
    messages: list[Any], key: str, prepared: Callable[..., Prepared], sample: Path
) -> None:
    """A conversation that is used has the roles and texts of its messages, in order."""
    records, failures = prepared([{"messages": [{"role": "assistant", "content": "a"}]}, {key: messages}], speech=False)
    talks = turns(records)
    assert len(talks) + len(failures) == 2
    if len(talks) == 2:
        for (role, text, _), message in zip(texts(talks[1], sample), messages, strict=True):
            assert message.get("role", message.get("from")) == role or message.get("from") == role
            content = message["content"] if "role" in message else message.get("value")
            said = content if isinstance(content, str) else "".join(part["text"] for part in content)
            assert said.strip() == text


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12), length=st.integers(20, 60))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_records_hold_every_conversation_once(
    sizes: list[int], length: int, prepared: Callable[..., Prepared], sample: Path
) -> None:
    """In order, in as few records as one after the other allows, each of which is one whole sequence."""
    lines = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "a" + " a" * size}]}
        for n, size in enumerate(sizes)
    ]
    records, failures = prepared(lines, speech=False, sequence_length=length)
    assert not failures
    assert [int(texts(talk, sample)[0][1]) for talk in turns(records)] == list(range(len(sizes)))
    tokenizer = load_text_tokenizer(sample / "text_tokenizer")
    ids = Vocabulary(1024, tokenizer.info.eos_id, 500, 1, ("<|assistant|>", "<|user|>"))
    lengths = []
    for record in records:
        rng = sequence_rng(0, record.id, 0, "sequence")
        sequence = build_sequence(record, "answer_text", ids, length, InterleavingConfig(), rng)
        assert len(sequence.document_starts) == len(record.conversation_ends)
        lengths.append(sequence.length)
        assert sequence.length == sum(len(turn.text_ids) + 2 for talk in conversations_of(record) for turn in talk)
    for record, following in zip(records[:-1], records[1:], strict=True):
        first = sum(len(turn.text_ids) + 2 for turn in conversations_of(following)[0])
        assert lengths[records.index(record)] + first > length + 1, "there was room for the next conversation"


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, sample: Path) -> None:
    """From files to a set that a run accepts, shows and evaluates, and one that it refuses by name."""
    from tolktrain.config import Config
    from tolktrain.data.checks import check_data

    write_wav(tmp_path / "q.wav", [(300, 0.6), (900, 0.5)])
    with (tmp_path / "d.jsonl").open("w") as file:
        for number in range(30):
            messages = [{"role": "user", "content": [{"type": "audio", "path": "q.wav", "text": "who is it"}]}]
            messages += [{"role": "assistant", "content": f"It is {number}."}]
            file.write(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "prepare.yaml").write_text(
        f"name: d\noutput: {tmp_path}/out\ntext_tokenizer: {sample}/text_tokenizer\nprocesses: 1\n"
        f"heldout: {{sources: 0.2, speakers: 0}}\nparts: {{items: 20}}\n"
        f"dialogue:\n  files: [{tmp_path}/d.jsonl]\n  strategies: [answer_text]\n  sequence_length: 96\n"
        f"  speech_tokenizer: {sample}/speech_tokenizer\n"
    )
    assert cli.main(["prepare", str(tmp_path / "prepare.yaml")]) == 0
    described = json.loads((tmp_path / "out" / "train" / "dataset.json").read_text())
    assert described["schema_version"] == 2
    assert described["conversations"]["roles"] == ["assistant", "user"]
    held = json.loads((tmp_path / "out" / "heldout_sources" / "dataset.json").read_text())
    assert described["conversations"]["num_conversations"] + held["conversations"]["num_conversations"] == 30
    records = open_records(DatasetConfig(path=str(tmp_path / "out" / "train")))
    assert len(turns(list(records))) == described["conversations"]["num_conversations"]
    shown = ["prepare", "--inspect", str(tmp_path / "out" / "train"), "--output", str(tmp_path / "shown")]
    assert cli.main(shown) == 0

    def config(tokens: list[str], strategy: str = "answer_text", length: int = 96) -> Config:
        shape = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        stage = {"name": "chat", "tokens": 1000, "learning_rate": 0.1, "mixture": {strategy: {"sets": {"d": 1}}}}
        batch = {"global_batch_size": 4, "micro_batch_size": 2, "sequence_length": length}
        return Config.model_validate(
            {
                "run": {"name": "x"},
                "model": {
                    "backbone": {**shape, "ffn_hidden_size": 8, "text_vocab_size": 1024},
                    "speech": {"num_units": 500},
                    "special_tokens": tokens,
                },
                "data": {"sets": {"d": {"path": str(tmp_path / "out" / "train")}}},
                "train": {**batch, "stages": [stage]},
            }
        )

    tokens = ["<|user|>", "<|assistant|>"]
    assert check_data(config(tokens), 1024).role_token("assistant") == 1024 + 4
    for wrong, message in (
        (config([]), r"lacks <\|assistant\|>, <\|user\|>; set model.special_tokens to \["),
        (config(tokens, "answer_speech"), "was prepared for the strategies answer_text, not for 'answer_speech'"),
        (config(tokens, length=95), "was prepared for sequences of 96 positions, and train.sequence_length is 95"),
        (config(tokens, "text"), "holds records of the kind 'conversation', and the strategy 'text' reads"),
        (
            config(tokens, "preference"),
            "of the kind 'conversation', and the strategy 'preference' reads the kind 'pref",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_data(wrong, 1024)
    assert {name for name, found in STRATEGIES.items() if found.reads == "conversation"} == {
        "answer_text", "answer_speech", "answer_interleaved", "answer_chain",
    }  # fmt: skip
