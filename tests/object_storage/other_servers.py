"""Servers of as much of Google's and Azure's protocols as a storage needs, which keep objects in memory."""

import base64
import contextlib
import email
import email.policy
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from xml.sax.saxutils import escape

PAGE = 2  # names in one answer to a list


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    buckets: dict[str, dict[str, bytes]]
    requests: list[str]

    def _handle(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = self._body()
        path, _, query = self.path.partition("?")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.serve([urllib.parse.unquote(part) for part in path.split("/")[1:]], options, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def serve(self, path: list[str], options: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def page(self, keys: list[str], prefix: str, marker: str) -> tuple[list[str], str]:
        """The next names after a marker, and the next marker."""
        found = sorted(key for key in keys if key.startswith(prefix) and key > marker)
        return found[:PAGE], found[PAGE - 1] if len(found) > PAGE else ""

    def log_message(self, *_: object) -> None:
        pass


class _Google(_Handler):
    def serve(self, path: list[str], options: dict[str, str], body: bytes) -> None:
        path = [part for part in path if part not in ("download", "upload")]
        if path[3] not in self.buckets:
            return self._json(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        objects = self.buckets[path[3]]
        if len(path) == 4:
            return self._json(200, {"name": path[3]})
        if self.command == "POST":
            return self._upload(objects, options, body)
        if self.command == "PUT":  # of an upload that POST has begun
            objects[options["upload_id"]] = body
            return self._json(200, {"name": options["upload_id"]})
        if len(path) == 5:
            names, after = self.page(list(objects), options.get("prefix", ""), options.get("pageToken", ""))
            items = [{"name": name, "bucket": path[3]} for name in names]
            return self._json(200, {"items": items} | ({"nextPageToken": after} if after else {}))
        key = "/".join(path[5:])
        if key not in objects:
            return self._json(404, {"error": {"code": 404, "message": "No such object"}})
        if self.command == "DELETE":
            del objects[key]
            return self.answer(204)
        digest = base64.b64encode(hashlib.md5(objects[key]).digest()).decode()
        self.answer(200, objects[key], {"X-Goog-Hash": f"md5={digest}"})
        return None

    def _upload(self, objects: dict[str, bytes], options: dict[str, str], body: bytes) -> None:
        if options["uploadType"] == "resumable":
            name = json.loads(body)["name"]
            begun = f"http://{self.headers['Host']}{self.path}&upload_id={urllib.parse.quote(name, safe='')}"
            return self.answer(200, headers={"Location": begun})
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        about, content = (part.get_payload(decode=True) for part in message.iter_parts())
        name = json.loads(about)["name"]
        objects[name] = content
        self._json(200, {"name": name})
        return None

    def _json(self, status: int, value: object) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class _Azure(_Handler):
    def serve(self, path: list[str], options: dict[str, str], body: bytes) -> None:
        _, container, *rest = path
        if container not in self.buckets:
            return self.answer(404, headers={"x-ms-error-code": "ContainerNotFound"})
        objects, key = self.buckets[container], "/".join(rest)
        if options.get("comp") == "list":
            return self._list(objects, options)
        if not key:
            return self.answer(200, headers=_STAMPS)
        if self.command == "PUT":
            objects[key] = body
            return self.answer(201, headers=_STAMPS)
        if key not in objects:
            return self.answer(404, headers={"x-ms-error-code": "BlobNotFound"})
        if self.command == "DELETE":
            del objects[key]
            return self.answer(202)
        return self._get(objects[key])

    def _get(self, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range", ""))
        if wanted is None:
            return self.answer(200, content, _STAMPS)
        if not content:
            return self.answer(416, headers={"x-ms-error-code": "InvalidRange"})
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        content_range = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return self.answer(206, content[first : last + 1], _STAMPS | content_range)

    def _list(self, objects: dict[str, bytes], options: dict[str, str]) -> None:
        names, after = self.page(list(objects), options.get("prefix", ""), options.get("marker", ""))
        blobs = "".join(f"<Blob><Name>{escape(name)}</Name><Properties/></Blob>" for name in names)
        answer = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{blobs}</Blobs>'
            f"<NextMarker>{escape(after)}</NextMarker></EnumerationResults>"
        )
        self.answer(200, answer.encode(), {"Content-Type": "application/xml"})


_STAMPS = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}


@contextlib.contextmanager
def running_google_server(*buckets: str) -> Iterator[tuple[str, list[str]]]:
    """A server with empty buckets: its URL, and the requests so far."""
    with _running(_Google, buckets) as server:
        yield server


@contextlib.contextmanager
def running_azure_server(*containers: str) -> Iterator[tuple[str, list[str]]]:
    """A server with empty containers of any account: its URL, and the requests so far."""
    with _running(_Azure, containers) as server:
        yield server


@contextlib.contextmanager
def _running(kind: type[_Handler], buckets: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    handler = type("Handler", (kind,), {"buckets": {name: {} for name in buckets}, "requests": requests})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()
