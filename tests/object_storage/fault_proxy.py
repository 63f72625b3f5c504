"""An HTTP proxy before an S3 server, which answers chosen requests with chosen faults."""

import contextlib
import fnmatch
import http.client
import http.server
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from s3_server import S3Server, environ_of

Kind = Literal["500", "503", "400", "403", "reset", "stall", "stall in body", "truncate", "corrupt"]

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_INVALID = b"<Error><Code>InvalidToken</Code><Message>The provided token is malformed.</Message></Error>"
_ANSWERS: Mapping[str, tuple[int, bytes]] = {
    "500": (500, _INTERNAL),
    "503": (503, _SLOW_DOWN),
    "400": (400, _INVALID),
    "403": (403, _DENIED),
}


@dataclass
class Fault:
    """What happens to the next `count` requests that match.

    reset: half of the body, then the connection is reset (of an upload: at once, and the server never sees it).
    truncate: half of the body under the full Content-Length, then an orderly end. corrupt: some bytes of the body are
    changed. stall: nothing for `seconds`, then the answer; stall in body: half of the answer before that.
    """

    kind: Kind
    path: str = "*"  # pattern of the request's path
    count: int = 1
    method: str = "GET"
    seconds: float = 0.0


@dataclass
class FaultProxy:
    """A running proxy. Clear it before a test."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # "METHOD path" of each request so far
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environ(self) -> Mapping[str, str]:
        """Environment variables with which the server is reached through the proxy."""
        return environ_of(self.url)

    def clear(self) -> None:
        """No faults, no requests."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()

    def add(self, kind: Kind, path: str = "*", count: int = 1, method: str = "GET", seconds: float = 0.0) -> None:
        """Answer the next matching requests with a fault."""
        with self.lock:
            self.faults.append(Fault(kind, path, count, method, seconds))

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for a request, which is counted."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.count and fault.method == method and fnmatch.fnmatch(path, fault.path):
                    fault.count -= 1
                    return fault
        return None

    def requested(self, pattern: str) -> int:
        """Requests so far that match, as in "GET *shard.00001*"."""
        with self.lock:
            return sum(fnmatch.fnmatch(request, pattern) for request in self.requests)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    host: str
    port: int

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.take(self.command, urllib.parse.urlsplit(self.path).path)
        if fault is not None and fault.kind in _ANSWERS:
            self._answer(*_ANSWERS[fault.kind])
            return
        if fault is not None and fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "reset" and content:
            self._reset()
            return
        upstream = http.client.HTTPConnection(self.host, self.port, timeout=300)
        try:
            upstream.request(self.command, self.path, body=content or None, headers=dict(self.headers))
            response = upstream.getresponse()
            body = response.read()
            headers = response.getheaders()
        finally:
            upstream.close()
        self.send_response_only(response.status, response.reason)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        hop = {"connection", "content-length", "transfer-encoding"}
        for name, value in headers:
            if name.lower() not in hop:
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self._send(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, body: bytes, fault: Fault | None) -> None:
        half = len(body) // 2
        kind = fault.kind if fault is not None else None
        if fault is not None and kind in ("reset", "truncate", "stall in body"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if kind == "stall in body":
                time.sleep(fault.seconds)
                self.wfile.write(body[half:])
                return
            self.close_connection = True
            if kind == "reset":
                self._reset()
            return
        if kind == "corrupt":
            body = body[:half] + bytes(byte ^ 0xFF for byte in body[half : half + 4]) + body[half + 4 :]
        self.wfile.write(body)

    def _reset(self) -> None:
        # With this, closing the connection sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def handle(self) -> None:
        """Serve a connection; clients that give up are none of our business."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Only close: the orderly shutdown would come before a reset."""
        assert isinstance(request, socket.socket)
        request.close()


@contextlib.contextmanager
def running_fault_proxy(server: S3Server) -> Iterator[FaultProxy]:
    """Start a proxy before a server, and stop it at the end."""
    target = urllib.parse.urlsplit(server.url)
    handler = type("Handler", (_Handler,), {"host": target.hostname, "port": target.port})
    with _Server(("127.0.0.1", 0), handler) as listener:
        proxy = FaultProxy(f"http://127.0.0.1:{listener.server_address[1]}")
        handler.proxy = proxy  # type: ignore[attr-defined]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()
