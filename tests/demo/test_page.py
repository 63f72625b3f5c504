"""The page of the demo in a real browser: typed, recorded and uploaded prompts, and what is heard and seen."""

import asyncio
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from browser import Tab, opened

from tolktrain.demo.server import make_app
from tolktrain.demo.session import Session

pytestmark = pytest.mark.slow

GO = "document.getElementById('go').click()"
ENDED = "!document.getElementById('go').disabled && document.getElementById('timing').textContent.includes('drawn in')"
SECONDS_HEARD = """(async () => {
  const audio = document.getElementById(%r);
  if (audio.readyState < 1) await new Promise((resolve) => audio.onloadedmetadata = resolve);
  return audio.duration;
})()"""
INKED = """(() => {
  const map = document.getElementById('map'), pixels = map.getContext('2d').getImageData(0, 0, map.width, map.height);
  return new Set(new Uint32Array(pixels.data.buffer)).size;
})()"""


def choose(name: str, value: str) -> str:
    """Click a choice."""
    return f"document.querySelector('input[name={name}][value={value}]').click()"


async def continued(tab: Tab) -> str:
    """Press the button, wait for the end, and return the words."""
    await tab.evaluate("document.getElementById('timing').textContent = ''")
    await tab.evaluate(GO)
    await tab.until(ENDED)
    words: str = await tab.evaluate("document.getElementById('words').textContent")
    return words


async def _use(session: Session, audio: Path) -> None:
    async with TestServer(make_app(session, "s3cret")) as server, opened(str(server.make_url("/s3cret/"))) as tab:
        await tab.until("document.getElementById('go')?.disabled === false")
        assert await tab.evaluate("document.title") == "tiny"
        assert await tab.evaluate("document.getElementById('modes').hidden"), "the model does not answer"

        await tab.evaluate(GO)  # without a prompt
        assert await tab.evaluate("document.getElementById('status').textContent") == "Type a prompt first."
        assert not await tab.evaluate("document.querySelector('details').open")
        await tab.evaluate("document.getElementById('seed').value = '-1'")
        await tab.evaluate(GO)  # with a number that the browser refuses
        assert await tab.evaluate("document.querySelector('details').open && stream === null")
        await tab.evaluate("document.getElementById('seed').value = '7'")
        await tab.evaluate("document.getElementById('temperature').value = '0.73'")

        await tab.evaluate("document.getElementById('text').value = 'the little <b>bird</b>'")
        await tab.evaluate("document.getElementById('seconds').value = '1.5'")
        units = (await continued(tab)).split()
        assert len(units) > 3 and all(unit.isdigit() for unit in units)
        assert await tab.evaluate(SECONDS_HEARD % "audio") > 1
        assert await tab.evaluate("player.end") > 1  # it was played as it came
        assert await tab.evaluate(f"units.length === {len(units)} && units[0].layers.length") == 2
        assert await tab.evaluate(INKED) > 2

        await tab.evaluate(choose("to", "text"))
        await tab.evaluate("document.getElementById('length').value = '8'")
        assert await continued(tab)
        assert await tab.evaluate("document.getElementById('layers').hidden")

        await tab.evaluate(choose("source", "recording"))
        await tab.evaluate("document.getElementById('record').click()")
        await tab.until("recorder && recorder.state === 'recording'")
        await asyncio.sleep(1.0)
        await tab.evaluate("document.getElementById('record').click()")
        await tab.until("recording !== null")
        assert await tab.evaluate(SECONDS_HEARD % "prompt-audio") > 0.3
        assert await continued(tab)

        await tab.evaluate(choose("source", "upload"))
        root = await tab.call("DOM.getDocument")
        file = await tab.call("DOM.querySelector", nodeId=root["root"]["nodeId"], selector="#file")
        await tab.call("DOM.setFileInputFiles", nodeId=file["nodeId"], files=[str(audio)])
        await tab.evaluate(choose("to", "speech"))
        assert (await continued(tab)).split()[0].isdigit()

        await tab.evaluate("document.getElementById('seconds').value = '60'")
        await tab.evaluate(GO)
        await tab.until("units.length > 2")
        await tab.evaluate("document.getElementById('stop').click()")
        await tab.until("document.getElementById('status').textContent === 'Stopped.'")
        assert not tab.complaints
        own = str(server.make_url("/"))
        assert all(url.startswith((own, "blob:", "data:")) for url in tab.requests), tab.requests


def test_all_ways_to_prompt(session: Session, repository: Path) -> None:
    """Nothing is fetched from elsewhere, and the page prints no error."""
    asyncio.run(_use(session, next((repository / "data" / "sample" / "prompts").glob("*.wav")).resolve()))


TURNS = "[...document.querySelectorAll('#turns li')].map((turn) => turn.className)"
SENT = "!document.getElementById('go').disabled && document.getElementById('status').textContent === ''"


async def _converse(session: Session, audio: Path, picture: Path) -> None:
    async with TestServer(make_app(session, "s3cret")) as server, opened(str(server.make_url("/s3cret/"))) as tab:
        await tab.until("document.getElementById('go')?.disabled === false")
        assert await tab.evaluate("chosen('mode')") == "converse"
        assert (await tab.evaluate("document.getElementById('about').textContent")).startswith("2 layers; ")
        assert not await tab.evaluate("document.getElementById('conversation').hidden")
        await tab.evaluate("document.getElementById('system').value = 'be kind'")
        await tab.evaluate("document.getElementById('length').value = '6'")
        await tab.evaluate("document.getElementById('seconds').value = '1.5'")
        await tab.evaluate(choose("answer", "text"))
        await tab.evaluate("document.getElementById('text').value = 'where is <b>it</b>?'")
        await tab.evaluate(GO)
        await tab.until(f"numAnswers === 1 && {SENT}")
        assert await tab.evaluate(TURNS) == ["user", "assistant"]
        first = await tab.evaluate("document.querySelector('#turns .user').textContent")
        assert first == "where is <b>it</b>?" and await tab.evaluate(
            "document.querySelector('.assistant .text').textContent"
        )

        await tab.evaluate(choose("source", "upload"))
        root = await tab.call("DOM.getDocument")
        file = await tab.call("DOM.querySelector", nodeId=root["root"]["nodeId"], selector="#file")
        await tab.call("DOM.setFileInputFiles", nodeId=file["nodeId"], files=[str(audio)])
        await tab.evaluate(choose("answer", "speech"))
        await tab.evaluate(GO)
        await tab.until(f"numAnswers === 2 && {SENT}")
        assert await tab.evaluate(TURNS) == ["user", "assistant"] * 2
        assert await tab.evaluate("player.end") > 0.5  # it was played as it came
        players = "[...document.querySelectorAll('#turns audio')]"
        assert await tab.until(f"{players}.length === 2 && {players}.every((one) => one.duration > 0.5)")

        await tab.evaluate(choose("source", "recording"))
        await tab.evaluate("document.getElementById('record').click()")
        await tab.until("recorder && recorder.state === 'recording'")
        await asyncio.sleep(0.7)
        await tab.evaluate("document.getElementById('record').click()")
        await tab.until("recording !== null")
        await tab.evaluate(choose("answer", "chain"))
        await tab.evaluate(GO)
        await tab.until(f"numAnswers === 3 && {SENT}")
        assert await tab.evaluate("document.querySelector('#turns li:last-child .heard').textContent")
        await tab.screenshot(picture)

        # A turn that cannot be read, and one that is stopped, are no turns.
        await tab.call("DOM.setFileInputFiles", nodeId=file["nodeId"], files=[__file__])
        await tab.evaluate(choose("source", "upload"))
        await tab.evaluate(GO)
        await tab.until("document.getElementById('status').textContent.includes('not a readable audio file')")
        assert len(await tab.evaluate(TURNS)) == 6
        await tab.evaluate(choose("answer", "speech"))
        await tab.evaluate(choose("source", "text"))
        await tab.evaluate("document.getElementById('text').value = 'tell me all'")
        await tab.evaluate("document.getElementById('seconds').value = '60'")
        await tab.evaluate(GO)
        await tab.until("turn?.words?.textContent.length > 5")
        await tab.evaluate("document.getElementById('stop').click()")
        await tab.until("document.getElementById('status').textContent === 'Stopped.'")
        assert len(await tab.evaluate(TURNS)) == 6 and await tab.evaluate("numAnswers") == 3

        await tab.evaluate("document.getElementById('new').click()")
        assert await tab.evaluate(TURNS) == []
        await tab.evaluate(choose("mode", "continue"))
        assert await tab.evaluate("document.getElementById('conversation').hidden")
        await tab.evaluate("document.getElementById('seconds').value = '0.5'")
        assert await continued(tab)
        assert not tab.complaints, tab.complaints


def test_a_conversation(talking: Session, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, uploaded and recorded turns; answers in text, speech and a chain; errors; a new conversation."""
    monkeypatch.setattr(talking, "step", None)  # as of weights whose training is not known
    audio = next((repository / "data" / "sample" / "prompts").glob("*.wav")).resolve()
    asyncio.run(_converse(talking, audio, tmp_path / "chat.png"))
