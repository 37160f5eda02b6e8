"""An HTTP proxy before an object store that misbehaves when it is told to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "host", "date", "server", "expect"}


@dataclass(slots=True)
class Fault:
    """What goes wrong with a request.

    Attributes:
        status: answered instead of the store's answer, with code; 0 for none.
        code: S3's word for it.
        stall: nothing is answered until the proxy ends.
        cut_after_bytes: the connection ends after so much of the answer's body; -1 for whole.
        lose_request: the connection ends before the store saw the request.
        lose_answer: the store does it, and nobody is told.
        method: of the requests that it is for; "" for all.
        path: part of their path.
        times: how many requests it still befalls.
    """

    status: int = 0
    code: str = ""
    stall: bool = False
    cut_after_bytes: int = -1
    lose_request: bool = False
    lose_answer: bool = False
    method: str = ""
    path: str = ""
    times: float = field(default=float("inf"))


class S3Proxy:
    """Forwards to a server, but for its faults.

    Args:
        upstream: URL of the server.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        # How many requests are on their way to the store, also when nobody waits for their answers any more.
        self.forwarding = 0
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._server = self._listen(0)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Nothing more goes wrong."""
        self.faults.clear()

    def refuse_connections(self) -> None:
        """Nobody listens from here on."""
        self._server.shutdown()
        self._server.server_close()

    def listen_again(self) -> None:
        """Ends refuse_connections()."""
        self._server = self._listen(self.port)

    def close(self) -> None:
        """Ends it, and what stalls."""
        self.ended.set()
        self.refuse_connections()

    def seen(self, method: str, path: str = "") -> list[str]:
        """The paths of the requests of a method whose path holds path."""
        return [found for how, found in self.requests if how == method and path in found]

    @contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Counts a request while it is forwarded."""
        with self._lock:
            self.forwarding += 1
        try:
            yield
        finally:
            with self._lock:
                self.forwarding -= 1

    def fault_for(self, method: str, path: str) -> Fault:
        """What is to go wrong with a request; the empty Fault for nothing."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    return fault
        return Fault()

    def _listen(self, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


@contextmanager
def s3_proxy(upstream: str) -> Iterator[S3Proxy]:
    """An S3Proxy and its end."""
    proxy = S3Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()


def _handler(proxy: S3Proxy) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer_one(self) -> None:
            fault = proxy.fault_for(self.command, self.path)
            length = int(self.headers.get("Content-Length", 0))
            if fault.lose_request:
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault.stall:
                proxy.ended.wait(60)
                self.close_connection = True
            elif fault.status:
                text = f"<Error><Code>{fault.code}</Code><Message>so it is</Message></Error>"
                self._answer(fault.status, [], text.encode())
            else:
                self._forward(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer_one

        def _forward(self, body: bytes, fault: Fault) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            with proxy.on_its_way():
                upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
            if fault.lose_answer:
                self.close_connection = True
            else:
                self._answer(answer.status, answer.getheaders(), data, fault.cut_after_bytes)

        def _answer(
            self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int = -1
        ) -> None:
            self.send_response(status)
            named = {name.lower() for name, _ in headers}
            for name, value in headers:
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            if "content-length" not in named:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data if cut < 0 else data[:cut])
            if cut >= 0:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

    return Handler
