"""The server of the page: this machine only, one continuation at a time, events as lines of JSON."""

import asyncio
import contextlib
import errno
import json
import secrets
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tolktrain.cluster.threads import guarded
from tolktrain.data.records import SYSTEM, USER
from tolktrain.demo.session import Cancelled, Event, Session
from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json
from tolktrain.generate.chat.dialogue import ChatLimits
from tolktrain.generate.chat.forms import FORMS
from tolktrain.generate.continuation import Limits
from tolktrain.generate.requests import request as make_request
from tolktrain.generate.sampling import Sampling
from tolktrain.prepare.dialogue.talk import Said as Given

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_PAGE = {"": "page.html", "page.css": "page.css", "page.js": "page.js", "chat.js": "chat.js"}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_LARGEST_UPLOAD = 64 << 20  # bytes: ten minutes of audio
_MOST_POSITIONS, _MOST_SECONDS = 1_000, 60.0
_LONGEST_NAME = 64
_HEADERS = {
    # Nothing from outside, and nothing of this page inside of others.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(session: Session, secret: str) -> web.Application:
    """The application of a session. All addresses begin with the secret, which other users of the machine lack."""
    demo = _Demo(session, asyncio.Lock())
    app = web.Application(client_max_size=_LARGEST_UPLOAD, middlewares=[_guard])
    app.router.add_get(f"/{secret}/about", demo.about)
    app.router.add_post(f"/{secret}/continue", demo.continue_prompt)
    app.router.add_post(f"/{secret}/converse", demo.converse)
    app.router.add_get(f"/{secret}/{{name:.*}}", _page)
    return app


async def serve(session: Session, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until INT or TERM. Port 0 is any free one; `on_ready` gets the address.

    Raises UserError if the port is taken.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    secret = secrets.token_urlsafe(12)
    runner = web.AppRunner(make_app(session, secret), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UserError(f"--port {port} cannot be used ({error.strerror}); choose another one, or 0") from None
        on_ready(f"http://{HOST}:{runner.addresses[0][1]}/{secret}/")
        await stopped.wait()
    finally:
        await runner.cleanup()


@web.middleware
async def _guard(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer only the page itself: other sites that a browser has open may reach this port, too, by their own names."""
    if urlsplit(f"//{request.host}").hostname not in _NAMES:
        raise web.HTTPForbidden(text=f"open this page as http://{HOST}")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text="this request comes from another site")
    response: web.StreamResponse = await handler(request)
    if not response.prepared:
        response.headers.update(_HEADERS)
    return response


async def _page(request: web.Request) -> web.Response:
    name = _PAGE.get(request.match_info["name"])
    if name is None:
        raise web.HTTPNotFound
    content = resources.files("tolktrain.demo").joinpath(name).read_bytes()
    return web.Response(body=content, content_type=_TYPES[Path(name).suffix], charset="utf-8")


@dataclass(frozen=True, eq=False)
class _Demo:
    """The handlers."""

    session: Session
    turn: asyncio.Lock

    async def about(self, request: web.Request) -> web.Response:
        """What the page shows of the model."""
        return web.json_response(self.session.describe())

    async def continue_prompt(self, request: web.Request) -> web.StreamResponse:
        """Continue the prompt of a form (see `_Form`); the answer is a line of JSON per event, as they come.

        A prompt that cannot be used gives the event "error" with the message.
        """
        return await self._respond(request, _Form.answer)

    async def converse(self, request: web.Request) -> web.StreamResponse:
        """The same of a turn of a conversation."""
        return await self._respond(request, _Form.converse)

    async def _respond(self, request: web.Request, act: "_Act") -> web.StreamResponse:
        form = await _Form.read(request)
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            if self.turn.locked():
                await response.write(_line({"kind": "waiting"}))
            async with self.turn, contextlib.aclosing(self._events(form, act)) as events:
                async for event in events:
                    await response.write(_line(event))
        except ConnectionError:  # the page was closed, or asked to stop
            return response
        await response.write_eof()
        return response

    async def _events(self, form: "_Form", act: "_Act") -> AsyncGenerator[Event, None]:
        """The events of a continuation that is computed in a thread; closing this gives it up."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
        given_up = False

        def emit(event: Event | None) -> None:
            if given_up and event is not None:
                raise Cancelled
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                act(form, self.session, emit)
            except Cancelled:
                pass
            except UserError as error:
                fail(str(error))
            except Exception:
                fail("a defect of the program; see the terminal of the server")
                raise
            finally:
                emit(None)

        def fail(message: str) -> None:
            with contextlib.suppress(Cancelled):
                emit({"kind": "error", "message": message})

        thread = guarded("continuation", work)
        thread.start()
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            given_up = True
            await asyncio.shield(asyncio.to_thread(thread.join))


def _line(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, eq=False)
class _Form:
    """A prompt as the page sends it: `prompt` (text, or an audio file), `to`, and the settings as JSON."""

    prompt: str | bytes
    settings: dict[str, Any]

    @classmethod
    async def read(cls, request: web.Request) -> "_Form":
        """Raises HTTPBadRequest if the request is something else."""
        try:
            fields = await request.post()
            prompt, settings = fields["prompt"], parse_json(str(fields["settings"]))
        except (LookupError, RuntimeError, ValueError, HttpProcessingError):  # also of encodings and broken parts
            raise web.HTTPBadRequest(text="expected a form with prompt and settings") from None
        if not isinstance(settings, dict):
            raise web.HTTPBadRequest(text="settings must be an object")
        return cls(prompt.file.read() if isinstance(prompt, web.FileField) else str(prompt), settings)

    def answer(self, session: Session, emit: Callable[[Event], None]) -> None:
        """Let the session continue the prompt. Raises UserError if it cannot be used."""
        to = self._one_of("to", ("text", "speech"))
        ends = self.settings.get("ends_utterance") is True
        settings = self._sampling()
        seconds = self._number("seconds", 0.1, _MOST_SECONDS) if to == "speech" and session.speaks else None
        most = int(self._number("length", 1, _MOST_POSITIONS)) if seconds is None else _MOST_POSITIONS
        limits = Limits(most, seconds, None if to == "speech" else 1)
        if isinstance(self.prompt, str):
            session.answer(make_request("text", self.prompt, to, ends, "prompt", "the prompt"), settings, limits, emit)
            return
        with self._file() as name:
            session.answer(make_request("audio", name, to, ends, "prompt", "the recording"), settings, limits, emit)

    def converse(self, session: Session, emit: Callable[[Event], None]) -> None:
        """Let the session answer the prompt, a turn of the conversation that `conversation` names; `is_first` if it
        begins with this turn, before which `system` is the instruction. Raises UserError if it cannot be used."""
        form = self._one_of("answer", tuple(session.forms) or tuple(FORMS))
        name, system = self.settings.get("conversation"), self.settings.get("system") or ""
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not isinstance(system, str):
            raise UserError("conversation must be a name, and system a text")
        settings, is_first = self._sampling(), self.settings.get("is_first") is True
        seconds = self._number("seconds", 0.1, _MOST_SECONDS) if form != "text" and session.speaks else None
        limits = ChatLimits(int(self._number("length", 1, _MOST_POSITIONS)), seconds)
        if seconds is not None:
            limits = ChatLimits(_MOST_POSITIONS, seconds)
        before = [Given(SYSTEM, system)] if is_first and system.strip() else []
        if isinstance(self.prompt, str):
            make_request("text", self.prompt, "text", False, "turn", "this turn")  # checks it
            said = [*before, Given(USER, self.prompt)]
            session.converse(name, is_first, said, form, settings, limits, emit)
            return
        with self._file() as file:
            said = [*before, Given(USER, audio=file)]
            session.converse(name, is_first, said, form, settings, limits, emit)

    @contextlib.contextmanager
    def _file(self) -> Iterator[str]:
        """The name of a file with the recording, which messages do not show."""
        assert isinstance(self.prompt, bytes)
        with tempfile.NamedTemporaryFile(prefix="recording-") as file:
            file.write(self.prompt)
            file.flush()
            try:
                yield file.name
            except UserError as error:
                raise UserError(str(error).replace(file.name, "the recording")) from None

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self._number("temperature", 0.0, 100.0),
            top_k=int(self._number("top_k", 0, 1 << 30)) or 1 << 30,
            seed=int(self._number("seed", 0, 1 << 53)),
            top_p=self._number("top_p", 1e-6, 1.0),
        )

    def _number(self, key: str, least: float, most: float) -> float:
        value = self.settings.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise UserError(f"{key} is {value!r:.40}; expected {least:g} to {most:g}")
        return value

    def _one_of(self, key: str, values: tuple[str, ...]) -> Any:
        value = self.settings.get(key)
        if value not in values:
            raise UserError(f"{key} is {value!r:.40}; expected {' or '.join(values)}")
        return value


_Act = Callable[[_Form, Session, Callable[[Event], None]], None]
