"""A tiny model hub on loopback: the routes, headers and error codes that clients rely on."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
_RESOLVE = re.compile(r"/(?P<id>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repo:
    """One model: its files, and whether it is gated."""

    files: dict[str, bytes]
    gated: bool = False
    claimed_sizes: dict[str, int] = field(default_factory=dict)


class Hub:
    """Serves `repos`; records every request's method, path, range and authorization."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.status: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, *_: object) -> None:
                """Keep the test output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, hf_id: str, files: dict[str, bytes], gated: bool = False) -> Repo:
        """Publish a model."""
        self.repos[hf_id] = Repo(files, gated)
        return self.repos[hf_id]

    def fetched(self) -> list[str]:
        """The files whose content was asked for, with the byte range if there was one."""
        found = []
        for method, path, span, _ in self.requests:
            if method == "GET" and "/resolve/" in path:
                found.append(path.rsplit("/", 1)[1] + (f" {span}" if span else ""))
        return found

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        span = request.headers.get("Range")
        authorization = request.headers.get("Authorization")
        self.requests.append((request.command, path, span, authorization))
        match = _RESOLVE.fullmatch(path)
        repo = self.repos.get(match["id"]) if match else None
        if self.status is not None:
            return _error(request, self.status, "")
        if match is None or repo is None:
            return _error(request, 401, "RepoNotFound")
        if repo.gated and authorization != "Bearer hf_right_token":
            return _error(request, 403 if authorization else 401, "GatedRepo")
        if match["revision"] not in ("main", COMMIT):
            return _error(request, 404, "RevisionNotFound")
        if match["file"] not in repo.files:
            return _error(request, 404, "EntryNotFound")
        content = repo.files[match["file"]]
        size = repo.claimed_sizes.get(match["file"], len(content))
        _send(request, content, size, span, body)


def _error(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _send(
    request: BaseHTTPRequestHandler, content: bytes, size: int, span: str | None, body: bool
) -> None:
    status, part = 200, content
    if span:
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups()  # type: ignore[union-attr]
        status, part = 206, content[int(first) : int(last) + 1]
    request.send_response(status)
    request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Accept-Ranges", "bytes")
    if status == 206:
        request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(part) if body else size))
    request.end_headers()
    if body:
        request.wfile.write(part)
