"""A substitute for the hub on this machine: repositories, their visibility, and files in commits."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class HubServer:
    """What the server knows."""

    tokens: dict[str, bool]  # whether each may write
    private: dict[str, bool] = field(default_factory=dict)  # by repository
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    address: str = ""


@contextmanager
def hub_server(tokens: dict[str, bool]) -> Iterator[HubServer]:
    """A running server."""
    hub = HubServer(tokens)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Who has the token, and what a repository is."""
        if not self._is_known():
            return
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if self.path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": "me", "orgs": []})
        elif name in self.state.private:
            self._answer(200, {"id": name, "private": self.state.private[name], "siblings": []})
        else:
            self._answer(404, {"error": "Repository not found"}, "RepoNotFound")

    def do_POST(self) -> None:
        """Create a repository, ask how files are uploaded, and commit them."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._is_known():
            return
        if not self.state.tokens[self._token()]:
            self._answer(403, {"error": "Forbidden: the token has no write permission"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            exists = name in self.state.private
            # Version 1 of the client names the visibility, earlier ones have a switch.
            self.state.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self._answer(409 if exists else 200, {"url": f"{self.state.address}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.state.files.setdefault(name, {})[line["value"]["path"]] = content
            made = {"commitUrl": f"{self.state.address}/{name}/commit/abc", "commitOid": "abc", "success": True}
            self._answer(200, made)
        else:
            self._answer(200, {})

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _is_known(self) -> bool:
        known = self._token() in self.state.tokens
        if not known:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        return known

    def _answer(self, status: int, content: dict[str, Any], code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)
