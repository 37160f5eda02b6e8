"""A Kubernetes API over HTTP that only answers: the objects that a test puts at paths, and access reviews."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


class ApiServer:
    """What is in the cluster.

    Attributes:
        objects: by path; a list is the items of a collection, an int the status of a refusal.
        denied: (user, verb, resource) that an access review says no to; user "" is the asking one.
        asked: paths, in their order.
        page_size: most items of one answer.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object | list[Object] | int] = {}
        self.denied: set[tuple[str, str, str]] = set()
        self.asked: list[str] = []
        self.page_size = 500
        self.url = ""

    def answer(self, method: str, target: str, body: Object) -> tuple[int, Object]:
        """Status and body."""
        parts = urlsplit(target)
        self.asked.append(f"{method} {parts.path}")
        if parts.path.endswith("accessreviews"):
            return 201, self._review(body)
        found = self.objects.get(parts.path)
        if isinstance(found, list):
            return 200, self._page(found, parse_qs(parts.query))
        if isinstance(found, int):
            return found, _status(found, f'cannot list resource at "{parts.path}"')
        if found is None:
            return 404, _status(404, f"{parts.path} not found")
        return 200, found

    def _review(self, body: Object) -> Object:
        told = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (told["resource"], told.get("subresource", ""))))
        key = (body["spec"].get("user", ""), told["verb"], resource)
        return {"status": {"allowed": key not in self.denied}}

    def _page(self, items: list[Object], query: Mapping[str, list[str]]) -> Object:
        begin = int(query.get("continue", ["0"])[0])
        size = min(self.page_size, int(query.get("limit", ["500"])[0]))
        rest = begin + size < len(items)
        return {
            "items": items[begin : begin + size],
            "metadata": {"continue": str(begin + size)} if rest else {},
        }

    def kubeconfig(self, path: Path) -> Path:
        """A file that leads here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        path.write_text(json.dumps(config))
        return path


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """Serves on a free port of this machine."""
    cluster = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            status, answer = cluster.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _respond

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}
