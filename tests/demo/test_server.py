"""The server of the demo: what it answers, to whom, and that a continuation is that of `tolktrain generate`."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer

from tolktrain.demo.server import make_app, serve
from tolktrain.demo.session import Cancelled, Event, Session
from tolktrain.demo.streaming import GrowingSpeech
from tolktrain.errors import UserError
from tolktrain.generate.answer import Answering, answer
from tolktrain.generate.chat.dialogue import ChatLimits
from tolktrain.generate.chat.run import Chatting, answer_scripts
from tolktrain.generate.chat.scripts import read_scripts
from tolktrain.generate.continuation import Limits
from tolktrain.generate.requests import request
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.settings import Drawing
from tolktrain.prepare.dialogue.talk import Said

SECRET = "s3cret"
SETTINGS = {"to": "speech", "temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": 7, "seconds": 2.5, "length": 12}


_MULTIPART = "multipart/form-data; boundary=x"
BROKEN = (
    ("multipart/form-data", b"hello"),
    (_MULTIPART, b"hello"),
    (_MULTIPART, b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nabc'),
    (_MULTIPART, b"--x\r\n" + b"A" * 20_000 + b": b\r\n\r\nabc\r\n--x--\r\n"),
    ("application/x-www-form-urlencoded; charset=nosuch", b"prompt=a&settings={}"),
    ("application/x-www-form-urlencoded", b"prompt=%ff&settings=%7b"),
)


def ask(session: Session, act: Callable[[TestClient[Any, Any]], Awaitable[None]]) -> None:
    """Do something with a client of the server."""

    async def run() -> None:
        async with TestClient(TestServer(make_app(session, SECRET))) as client:
            await act(client)

    asyncio.run(run())


def form(prompt: Any, **settings: Any) -> FormData:
    """A prompt as the page sends it."""
    found = FormData()
    if isinstance(prompt, bytes):
        found.add_field("prompt", prompt, filename="a.wav", content_type="audio/wav")
    else:
        found.add_field("prompt", prompt)
    found.add_field("settings", json.dumps(SETTINGS | settings))
    return found


async def events_of(client: TestClient[Any, Any], prompt: Any, **settings: Any) -> list[dict[str, Any]]:
    """All events of a continuation."""
    response = await client.post(f"/{SECRET}/continue", data=form(prompt, **settings))
    assert response.status == 200
    return [json.loads(line) for line in (await response.text()).splitlines()]


@pytest.fixture(scope="module")
def spoken(repository: Path) -> bytes:
    """A WAV file of a prompt."""
    return next((repository / "data" / "sample" / "prompts").glob("*.wav")).read_bytes()


@pytest.mark.slow
def test_the_four_directions_are_those_of_generate(session: Session, spoken: bytes, tmp_path: Path) -> None:
    """The same text, units and audio; what came piece by piece adds up to it."""
    audio = tmp_path / "a.wav"
    audio.write_bytes(spoken)
    prompts = [("text", "the little bird", "speech"), ("text", "the little bird", "text")]
    prompts += [("audio", str(audio), "speech"), ("audio", str(audio), "text")]
    found: list[list[dict[str, Any]]] = []

    async def act(client: TestClient[Any, Any]) -> None:
        for kind, content, to in prompts:
            found.append(await events_of(client, spoken if kind == "audio" else content, to=to))

    ask(session, act)
    for number, ((kind, content, to), events) in enumerate(zip(prompts, found, strict=True)):
        limits = Limits(1_000, 2.5) if to == "speech" else Limits(12, utterances=1)
        options = Answering(drawing=Drawing(1.0, 50, seed=7), limits=limits, into=tmp_path / str(number))
        answer(session.run, [request(kind, content, to, False, "p", "p")], options, lambda text: None)  # type: ignore[arg-type]
        (line,) = (tmp_path / str(number) / "continuations.jsonl").read_text().splitlines()
        expected, done = json.loads(line), events[-1]
        assert done["kind"] == "done" and done["prompt_positions"] == expected["timing"]["prompt_positions"]
        positions = [event for event in events if event["kind"] == "position"]
        if to == "text":
            assert done["text"] == expected["text"] == "".join(event["text"] for event in positions)
            continue
        assert [event["unit"] for event in positions] == [frame[0] for frame in expected["units"]]
        assert all(sum(event["layers"]) == pytest.approx(1, abs=1e-3) for event in positions)
        wav = base64.b64decode(done["wav"])
        assert wav == (tmp_path / str(number) / expected["file"]).read_bytes()
        pieces = [np.frombuffer(base64.b64decode(e["pcm"]), "<i2") for e in events if e["kind"] == "audio"]
        assert len(pieces) >= 3 and sum(map(len, pieces)) == soundfile.info(io.BytesIO(wav)).frames


def test_layers_are_those_of_the_pooling(session: Session) -> None:
    """The weights that come with a unit are those with which it is predicted from the whole context."""
    import torch

    from tolktrain.generate.context import Context
    from tolktrain.model.inputs import ModelInputs

    found: list[dict[str, Any]] = []

    async def act(client: TestClient[Any, Any]) -> None:
        found.extend(await events_of(client, "the little bird"))

    ask(session, act)
    positions = [event for event in found if event["kind"] == "position"][:6]
    vocabulary = session.continuer.vocabulary
    ids = session.continuer.text.tokenizer.encode("the little bird", add_special_tokens=False).ids
    before = Context.of_text(ids, vocabulary, switch=True)
    for count, event in enumerate(positions):
        units = np.array([[earlier["unit"]] for earlier in positions[:count]], np.int64).reshape(-1, 1)
        speech = Context.of_speech(units, vocabulary)
        tokens = torch.from_numpy(np.concatenate([before.tokens, speech.tokens], axis=1))[None]
        is_speech = torch.from_numpy(np.concatenate([before.is_speech, speech.is_speech]))[None]
        probs: list[Any] = []
        module = next(m for m in session.continuer.model.modules() if type(m).__name__ == "WeightedAverage")
        handle = module.register_forward_hook(lambda module, inputs, output, keep=probs.append: keep(output.probs))
        with torch.inference_mode():
            session.continuer.model.next_logits(
                ModelInputs.for_next(tokens, is_speech, torch.tensor([tokens.shape[2]]))
            )
        handle.remove()
        assert event["layers"] == pytest.approx(probs[0].flatten(0, -2)[-1].tolist(), abs=1e-3)


@pytest.mark.slow
def test_a_conversation_is_that_of_generate(talking: Session, spoken: bytes, tmp_path: Path) -> None:
    """Two answers in speech; turns that are refused in between change nothing."""
    (tmp_path / "a.wav").write_bytes(spoken)
    found: list[list[dict[str, Any]]] = []
    turns: list[tuple[Any, dict[str, Any]]] = [
        ("where is it", {"is_first": True, "system": "be kind"}),
        (b"none", {}),
        ("a", {"conversation": "another"}),
        ("a", {"conversation": ""}),
        ("a", {"answer": "song"}),
        (spoken, {}),
    ]

    async def act(client: TestClient[Any, Any]) -> None:
        for said, changes in turns:
            data = form(said, **{"answer": "speech", "conversation": "c", "seconds": 1.0} | changes)
            response = await client.post(f"/{SECRET}/converse", data=data)
            found.append([json.loads(line) for line in (await response.text()).splitlines()])

    ask(talking, act)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "where is it"}]
    messages.append({"role": "assistant", "content": None})  # type: ignore[dict-item]
    messages.append({"role": "user", "content": [{"type": "audio", "path": "a.wav"}]})  # type: ignore[dict-item]
    (tmp_path / "lines.jsonl").write_text(json.dumps({"messages": messages, "name": "c"}))
    options = Chatting(
        form="speech", drawing=Drawing(1.0, 50, seed=7), limits=ChatLimits(1_000, 1.0), into=tmp_path / "out"
    )
    answer_scripts(talking.run, read_scripts(str(tmp_path / "lines.jsonl")), options, lambda text: None)
    (line,) = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
    for events, expected in zip((found[0], found[-1]), json.loads(line)["answers"], strict=True):
        assert events[-1]["kind"] == "done" and events[-1]["prompt_positions"] == expected["timing"]["prompt_positions"]
        assert [event["unit"] for event in events if "unit" in event] == [unit for (unit,) in expected["units"]]
        wav = base64.b64decode(events[-1]["wav"])
        assert wav == (tmp_path / "out" / expected["file"]).read_bytes()
        pieces = [np.frombuffer(base64.b64decode(e["pcm"]), "<i2") for e in events if e["kind"] == "audio"]
        assert sum(map(len, pieces)) == soundfile.info(io.BytesIO(wav)).frames
        assert (events[-1]["remark"] is None) == (expected["ended"] == "EOS")
    errors = [events[-1]["message"] for events in found[1:-1]]
    wanted = ("not a readable audio file", "no longer known", "must be a name", "answer is 'song'")
    assert all(part in message for part, message in zip(wanted, errors, strict=True)), errors


def test_a_turn_that_is_stopped_while_its_audio_is_made(talking: Session) -> None:
    """The page forgets it, and so does the conversation: the next answer follows the same positions as without it."""

    def say(name: str, text: str, is_first: bool, stop_at: str | None = None) -> Event:
        events: list[Event] = []

        def emit(event: Event) -> None:
            if event["kind"] == stop_at:
                raise Cancelled
            events.append(event)

        said, settings = [Said("user", text)], Sampling(0.0, 1, 7)
        talking.converse(name, is_first, said, "speech", settings, ChatLimits(9, 1.0), emit)
        return events[-1]

    expected = [say("a", "where is it", True), say("a", "and then", False)]
    for stop_at in ("done", "audio", "part"):
        with pytest.raises(Cancelled):
            say("first", "where is it", True, stop_at)
        with pytest.raises(UserError, match="no longer known"):
            say("first", "where is it", False)
        found = [say("b", "where is it", True)]
        with pytest.raises(Cancelled):
            say("b", "who", False, stop_at)
        found.append(say("b", "and then", False))
        for one, other in zip(found, expected, strict=True):
            assert one["prompt_positions"] == other["prompt_positions"] and one["wav"] == other["wav"]


def test_a_model_that_does_not_answer(session: Session) -> None:
    """The page offers no conversation, and the server refuses one."""

    async def act(client: TestClient[Any, Any]) -> None:
        assert (await (await client.get(f"/{SECRET}/about")).json())["answers"] == []
        response = await client.post(f"/{SECRET}/converse", data=form("a", answer="text", conversation="c"))
        (line,) = (await response.text()).splitlines()
        assert "has no tokens of the roles" in json.loads(line)["message"]

    ask(session, act)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "the prompt: text is empty"),
        (b"", {}, "is not a readable audio file"),
        (b"<html>not found</html>", {}, "is not a readable audio file"),
        ("bird", {"to": "song"}, "to is 'song'; expected text or speech"),
        ("bird", {"temperature": None}, "temperature is None; expected 0 to 100"),
        ("bird", {"top_k": "many"}, "top_k is 'many'"),
        ("bird", {"seconds": 1e9}, "seconds is 1000000000.0; expected 0.1 to 60"),
        ("bird " * 400, {}, "shorten the prompt"),
    ],
)
def test_prompts_that_cannot_be_used(session: Session, prompt: Any, settings: dict[str, Any], message: str) -> None:
    """The message comes as an event, and the next prompt is continued."""

    async def act(client: TestClient[Any, Any]) -> None:
        (event,) = await events_of(client, prompt, **settings)
        assert event["kind"] == "error" and message in event["message"]
        assert "/tmp" not in event["message"]
        assert (await events_of(client, "bird", to="text"))[-1]["kind"] == "done"

    ask(session, act)


def test_other_sites_are_refused(session: Session) -> None:
    """By another name of this machine, or from a page of another origin."""

    async def act(client: TestClient[Any, Any]) -> None:
        port = client.port
        for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}):
            for path in ("", "about"):
                assert (await client.get(f"/{SECRET}/{path}", headers=headers)).status == 403
            assert (await client.post(f"/{SECRET}/continue", headers=headers, data=form("bird"))).status == 403
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        assert (await client.get(f"/{SECRET}/about", headers=own)).status == 200

    ask(session, act)


def test_only_the_page_is_served(session: Session) -> None:
    async def act(client: TestClient[Any, Any]) -> None:
        for path, kind in (("", "text/html"), ("chat.js", "text/javascript"), ("page.css", "text/css")):
            response = await client.get(f"/{SECRET}/{path}")
            assert response.status == 200 and response.content_type == kind
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        for path in ("server.py", "../server.py", "%2e%2e/server.py", "page.html", "/etc/passwd"):
            assert (await client.get(f"/{SECRET}/{path}")).status == 404
        for path in ("/", "/about", "/page.js", "/other/", "/other/about"):
            assert (await client.get(path)).status == 404
        for data in (b"", b"{}", FormData({"prompt": "bird"}), FormData({"prompt": "bird", "settings": "[1"})):
            assert (await client.post(f"/{SECRET}/continue", data=data)).status == 400
        deep = FormData({"prompt": "bird", "settings": "[" * 100_000})
        assert (await client.post(f"/{SECRET}/continue", data=deep)).status == 400
        for kind, body in BROKEN:
            response = await client.post(f"/{SECRET}/continue", data=body, headers={"Content-Type": kind})
            assert response.status == 400, (kind, body[:40])

    ask(session, act)


def test_a_page_that_is_closed_gives_up_its_continuation(session: Session) -> None:
    """The next one does not wait for what nobody hears."""
    before = {thread.name for thread in threading.enumerate()}

    async def act(client: TestClient[Any, Any]) -> None:
        response = await client.post(f"/{SECRET}/continue", data=form("bird", seconds=60.0, temperature=1.5))
        await response.content.readline()
        response.close()
        events = await events_of(client, "bird", to="text")
        assert events[-1]["kind"] == "done"

    ask(session, act)
    assert "continuation" not in {thread.name for thread in threading.enumerate()} - before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server(session: Session, number: signal.Signals) -> None:
    addresses: list[str] = []

    def on_ready(address: str) -> None:
        addresses.append(address)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

    asyncio.run(serve(session, 0, on_ready))
    (address,) = addresses
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=30)


def test_a_port_that_is_taken(session: Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} cannot be used .*; choose another one"):
            asyncio.run(serve(session, port, lambda address: None))


@pytest.mark.parametrize("frames_per_unit", [1, 3, 60])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_pieces_of_growing_speech_add_up(frames_per_unit: int, neighbours: int) -> None:
    """With a vocoder whose samples depend on their own frame only, the pieces are the whole, also if the durations
    depend on the units around."""

    class Plain:
        sample_rate = 16_000

        def stream(self, frames: Any) -> Any:
            yield np.repeat(frames[:, 0].astype(np.float32) / 100, 320)

    class Around:
        def __init__(self) -> None:
            self.neighbours = neighbours

        def run_lengths(self, units: Any) -> Any:
            padded = np.pad(units[:, 0], neighbours)
            windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * neighbours + 1)
            return frames_per_unit + windows.sum(axis=1) % 3 * (neighbours > 0)

    units = np.random.default_rng(0).integers(0, 100, (40, 1))
    growing = GrowingSpeech(Plain(), Around(), 50.0)  # type: ignore[arg-type]
    pieces = [piece for unit in units if (piece := growing.add(unit)) is not None]
    pieces.append(growing.rest())
    expected = np.repeat(units[:, 0].astype(np.float32) / 100, 320 * Around().run_lengths(units))
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-6)
    assert len(pieces) > 1 or frames_per_unit == 1
