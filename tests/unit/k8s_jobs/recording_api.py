"""An API server that notes what a worker writes on its Job, over real HTTP, and refuses where it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

TOKEN = "of-the-pod"


class RecordingApi:
    """Use as a context manager.

    Attributes:
        job: the Job's name.
        annotations: of the Job, after every patch so far.
        patches: how many there were.
        events: as they were posted, oldest first.
        refusals: how many answers were refusals.
        refuse_with: HTTP status of every answer while it is set.
    """

    def __init__(self, folder: Path, job: str = "support-bot") -> None:
        self.job = job
        self.annotations: dict[str, str] = {}
        self.patches = 0
        self.events: list[dict[str, Any]] = []
        self.refusals = 0
        self.refuse_with = 0
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(f"{TOKEN}\n")
        (folder / "namespace").write_text("graft")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the manifest and Kubernetes put into the worker's environment."""
        host, port = self._server.server_address[:2]
        return {
            "GRAFT_WORKER_KUBERNETES_JOB": self.job,
            "GRAFT_WORKER_KUBERNETES_API": f"http://{host!s}:{port}",
            "GRAFT_WORKER_KUBERNETES_ACCOUNT": str(self._folder),
            "GRAFT_WORKER_KUBERNETES_EVERY_S": "0.2",
            "HOSTNAME": f"{self.job}-x1",
        }

    @property
    def reasons(self) -> list[str]:
        """Of the events."""
        return [event["reason"] for event in self.events]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(api: RecordingApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PATCH(self) -> None:
            assert self.path == f"/apis/batch/v1/namespaces/graft/jobs/{api.job}"
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            body = self._body()
            if self._refused():
                return
            api.annotations |= body["metadata"]["annotations"]
            api.patches += 1
            self._answer({"metadata": {"name": api.job, "uid": "u-1"}})

        def do_POST(self) -> None:
            assert self.path == "/api/v1/namespaces/graft/events"
            body = self._body()
            if self._refused():
                return
            api.events.append(body)
            self._answer(body)

        def _body(self) -> Any:
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _refused(self) -> bool:
            if api.refuse_with:
                api.refusals += 1
                self._answer({"kind": "Status", "code": api.refuse_with}, api.refuse_with)
            return bool(api.refuse_with)

        def _answer(self, body: Any, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler
