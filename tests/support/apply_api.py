"""A small Kubernetes API server: server-side apply, get, list and delete of a few kinds, over real HTTP.

It keeps what it is given, moves resourceVersion and generation as the real one does, and can be made to
refuse. Nothing controls anything: a test says what a Deployment's status is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web


class ApplyApi:
    """What is stored, by path, and every request.

    Attributes:
        objects: by path.
        applied: paths in the order of their PATCH requests, without dry runs.
        refusals: by the last part but one of a path ("deployments"): status and message.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.applied: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self._version = 0
        self.url = ""

    def of_kind(self, plural: str) -> dict[str, dict[str, Any]]:
        """By name."""
        return {
            path.rpartition("/")[2]: one
            for path, one in self.objects.items()
            if path.split("/")[-2] == plural
        }

    def put(self, path: str, body: dict[str, Any]) -> None:
        """Stores an object as a controller would."""
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[path] = body

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "a-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def _answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer a-token":
            return _status(401, "Unauthorized")
        parts = request.path.strip("/").split("/")
        for plural, (status, message) in self.refusals.items():
            if plural in parts:
                return _status(status, message)
        if request.method == "PATCH":
            return await self._apply(request)
        if request.method == "GET" and request.path not in self.objects:
            listed = self._list(request)
            return _status(404, f"{parts[-1]} not found") if listed is None else listed
        if request.path not in self.objects:
            return _status(404, f"{parts[-1]} not found")
        if request.method == "DELETE":
            del self.objects[request.path]
            return web.json_response({"kind": "Status", "status": "Success"})
        return web.json_response(self.objects[request.path])

    async def _apply(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/apply-patch+yaml"
        query = dict(request.query)
        assert query["fieldManager"]
        self.queries.append(query)
        body = json.loads(await request.read())
        before = self.objects.get(request.path)
        stored: dict[str, Any] = {"metadata": {"generation": 0}}
        if before:
            stored = copy.deepcopy(before)
        same = before is not None and {**before, **body, "metadata": before["metadata"]} == before
        if not same:
            metadata = {**stored["metadata"], **body["metadata"]}
            metadata["generation"] = stored["metadata"]["generation"] + 1
            stored = {**stored, **body, "metadata": metadata}
        if "dryRun" not in query:
            self.applied.append(request.path)
            if not same:
                self.put(request.path, stored)
        elif not same:
            stored["metadata"]["resourceVersion"] = "dry"
        return web.json_response(stored, status=200 if before else 201)

    def _list(self, request: web.Request) -> web.Response | None:
        if "labelSelector" not in request.query:
            return None
        items = [
            one
            for path, one in self.objects.items()
            if path.rpartition("/")[0] == request.path
            and _matches(one["metadata"].get("labels", {}), request.query["labelSelector"])
        ]
        return web.json_response({"kind": "List", "metadata": {}, "items": items})


def _matches(labels: dict[str, str], selector: str) -> bool:
    def one(part: str) -> bool:
        name, separator, value = part.partition("=")
        return labels.get(name) == value if separator else name in labels

    return all(one(part) for part in selector.split(","))


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code)


@asynccontextmanager
async def apply_api() -> AsyncIterator[ApplyApi]:
    """One that answers at .url until the end."""
    api = ApplyApi()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api._answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    api.url = f"http://{host}:{port}"
    try:
        yield api
    finally:
        await runner.cleanup()
