"""The HTTP side: list, watch, get, create, patch and delete as Kubernetes' API conventions say."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any

from aiohttp import web

from tests.support.kube_api.facts import Facts
from tests.support.kube_api.faults import Fault, Faults
from tests.support.kube_api.store import Entry, Object, Refused, Store, merge_patch, now, selected
from tests.support.kube_api.validation import check_new, check_update

CORE = {"pods": "Pod", "configmaps": "ConfigMap", "secrets": "Secret", "services": "Service"}
CORE |= {"events": "Event", "persistentvolumeclaims": "PersistentVolumeClaim"}
JOBSET, TRAINER, KUEUE = "jobset.x-k8s.io", "trainer.kubeflow.org", "kueue.x-k8s.io"
KINDS = {
    **{("", "v1", plural): kind for plural, kind in CORE.items()},
    ("batch", "v1", "jobs"): "Job",
    ("batch", "v1", "cronjobs"): "CronJob",
    (JOBSET, "v1alpha2", "jobsets"): "JobSet",
    (TRAINER, "v1alpha1", "trainjobs"): "TrainJob",
    (TRAINER, "v1alpha1", "trainingruntimes"): "TrainingRuntime",
    (KUEUE, "v1beta2", "workloads"): "Workload",
}
# What is there only where somebody installed it.
_OPTIONAL = (JOBSET, TRAINER, KUEUE)
# Whose parts go first.
_SLOW = ("jobs", "jobsets", "trainjobs")
_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
Admission = Callable[[str, Object], None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """Serves a store.

    Args:
        store: the objects.
        faults: what goes wrong.

    Attributes:
        requests: method and path of every call, watches as "WATCH".
        admission: called with plural and object before something is created; raises Refused.
        token: that calls must bear; "" for none.
        installed: API groups that are there beside Kubernetes' own.
        forbidden: plurals that nobody may do anything with.
        facts: answers at paths, see facts.py.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store, self.faults = store, faults
        self.requests: list[tuple[str, str]] = []
        self.admission: Admission = lambda _plural, _one: None
        self.logs: Callable[[str, str], str | None] = lambda _namespace, _pod: None
        self.token = ""
        self.installed: set[str] = set()
        self.forbidden: set[str] = set()
        self.facts = Facts()
        self.bookmark_s = 30.0
        self._streams: set[web.StreamResponse] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listens; returns the URL."""
        app = web.Application(client_max_size=2**22, middlewares=[self._known_facts])
        app.router.add_get("/apis/{group}/{version}", self._discover)
        for prefix in ("/api/{version}", "/apis/{group}/{version}"):
            root = prefix + "/namespaces/{namespace}/{plural}"
            app.router.add_route("*", root, self._all)
            app.router.add_route("*", root + "/{name}", self._one)
            app.router.add_get(root + "/{name}/log", self._log)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Ends every watch and stops listening."""
        self.break_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    def break_watches(self) -> None:
        """Closes the connections of all watches."""
        for stream in list(self._streams):
            _drop(stream)

    @web.middleware
    async def _known_facts(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await self.facts.answer(request)
        return await handler(request) if answer is None else answer

    async def _discover(self, request: web.Request) -> web.StreamResponse:
        """What a group has in a version."""
        self.requests.append(("GET", request.path))
        group, version = request.match_info["group"], request.match_info["version"]
        if group in _OPTIONAL and group not in self.installed:
            return _status(404, "NotFound", "the server could not find the requested resource")
        resources = [
            {"name": plural, "kind": kind, "namespaced": True}
            for (of, at, plural), kind in KINDS.items()
            if (of, at) == (group, version)
        ]
        if not resources:
            return _status(404, "NotFound", "the server could not find the requested resource")
        body = {"kind": "APIResourceList", "groupVersion": f"{group}/{version}"}
        return web.json_response({**body, "resources": resources})

    async def _all(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET" and request.query.get("watch") in ("true", "1"):
            return await self._answer(request, "WATCH", self._watch)
        method = {"GET": self._list, "POST": self._create}[request.method]
        return await self._answer(request, request.method, method)

    async def _one(self, request: web.Request) -> web.StreamResponse:
        methods = {"GET": self._get, "PATCH": self._patch, "DELETE": self._delete}
        return await self._answer(request, request.method, methods[request.method])

    async def _answer(
        self,
        request: web.Request,
        method: str,
        act: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        self.requests.append((method, request.path))
        plural = request.match_info["plural"]
        fault = self.faults.of(method, plural)
        try:
            self._check(request, plural)
            if fault is None:
                return await act(request)
            if fault.done and method != "WATCH":
                await act(request)
            return _failed(request, fault)
        except Refused as refused:
            return _status(refused.status, refused.reason, refused.message, refused.retry_after_s)

    def _check(self, request: web.Request, plural: str) -> None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        group = (request.match_info.get("group", ""), request.match_info["version"], plural)
        missing = group[0] in _OPTIONAL and group[0] not in self.installed
        if group not in KINDS or missing:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if plural in self.forbidden:
            raise Refused(403, "Forbidden", f'{plural} is forbidden: User "trainer" cannot')

    async def _list(self, request: web.Request) -> web.StreamResponse:
        labels, fields = _selectors(request)
        plural = request.match_info["plural"]
        items = self.store.all(plural, lambda one: selected(one, labels, fields))
        limit, start = int(request.query.get("limit", "0")), 0
        meta: Object = {"resourceVersion": str(self.store.revision)}
        if token := request.query.get("continue"):
            start, revision = map(int, token.split("-"))
            if revision < self.store.compacted:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
        if limit and start + limit < len(items):
            meta["continue"] = f"{start + limit}-{self.store.revision}"
        page = items[start : start + limit] if limit else items
        return web.json_response(
            {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": page}
        )

    async def _get(self, request: web.Request) -> web.StreamResponse:
        info = request.match_info
        return web.json_response(self.store.get(info["plural"], info["namespace"], info["name"]))

    async def _create(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise Refused(415, "UnsupportedMediaType", f"{request.content_type} is not supported")
        info, one = request.match_info, await request.json()
        kind = KINDS[(info.get("group", ""), info["version"], info["plural"])]
        if "generateName" in one["metadata"]:
            one["metadata"].setdefault("name", one["metadata"]["generateName"] + token_hex(3)[:5])
        if (
            one.get("kind") != kind
            or one["metadata"].get("namespace", info["namespace"]) != info["namespace"]
        ):
            raise Refused(400, "BadRequest", f"this is not a {kind} of {info['namespace']}")
        if self.store.find(info["plural"], info["namespace"], one["metadata"]["name"]) is None:
            check_new(kind, one)
            self._check_runtime(kind, info["namespace"], one)
            self.admission(info["plural"], one)
        made = self.store.create(info["plural"], info["namespace"], one)
        return web.json_response(made, status=201)

    def _check_runtime(self, kind: str, namespace: str, one: Object) -> None:
        """Kubeflow's webhook."""
        if kind != "TrainJob":
            return
        name = one["spec"]["runtimeRef"]["name"]
        if self.store.find("trainingruntimes", namespace, name) is None:
            message = f"{name} not found: specified trainingRuntime must be created before the TrainJob is created"
            raise Refused(422, "Invalid", message)

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        if request.content_type not in _PATCHES:
            raise Refused(415, "UnsupportedMediaType", f"{request.content_type} is not supported")
        info = request.match_info
        known = self.store.get(info["plural"], info["namespace"], info["name"])
        patched = merge_patch(known, await request.json())
        check_update(info["plural"], known, patched)
        return web.json_response(self.store.update(info["plural"], patched))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        info = request.match_info
        one = self.store.get(info["plural"], info["namespace"], info["name"])
        options = await request.json() if request.can_read_body else {}
        uid = (options.get("preconditions") or {}).get("uid", one["metadata"]["uid"])
        if uid != one["metadata"]["uid"]:
            message = f"Precondition failed: UID in precondition: {uid}"
            raise Refused(409, "Conflict", message)
        if info["plural"] == "pods":
            self._end_pod(one, options.get("gracePeriodSeconds"))
        elif options.get("propagationPolicy") == "Foreground" and info["plural"] in _SLOW:
            one["metadata"].setdefault("deletionTimestamp", now())
            self.store.update(info["plural"], one)
        else:
            self.store.remove(info["plural"], info["namespace"], info["name"])
        return web.json_response(one)

    def _end_pod(self, pod: Object, grace_s: int | None) -> None:
        given = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        before = pod["metadata"].get("deletionGracePeriodSeconds", given)
        pod["metadata"].setdefault("deletionTimestamp", now())
        pod["metadata"]["deletionGracePeriodSeconds"] = min(given, before)
        self.store.update("pods", pod)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(("LOG", request.path))
        info = request.match_info
        text = self.logs(info["namespace"], info["name"])
        if text is None:
            return _status(404, "NotFound", f'pods "{info["name"]}" not found')
        last = "\n".join(text.splitlines()[-int(request.query.get("tailLines", "1000")) :])
        return web.Response(text=last + "\n")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        if since < self.store.compacted:
            gone = {
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {since}",
            }
            await _send(stream, "ERROR", {"kind": "Status", "status": "Failure", **gone})
            return stream
        self._streams.add(stream)
        try:
            await self._stream(request, stream, since)
        except (ConnectionResetError, TimeoutError):
            pass
        finally:
            self._streams.discard(stream)
        return stream

    async def _stream(self, request: web.Request, stream: web.StreamResponse, since: int) -> None:
        labels, fields = _selectors(request)
        plural = request.match_info["plural"]
        wanted: deque[Entry] = deque(e for e in self.store.log if e.revision > since)
        news = asyncio.Event()

        def hear(entry: Entry) -> None:
            wanted.append(entry)
            news.set()

        self.store.listen(hear)
        sent: Entry | None = None
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                while True:
                    while wanted:
                        entry = wanted.popleft()
                        if entry.plural != plural or not selected(entry.one, labels, fields):
                            continue
                        await _send(stream, entry.kind, entry.one)
                        if self.faults.repeats():
                            await _send(stream, entry.kind, entry.one)
                            if sent is not None:
                                await _send(stream, sent.kind, sent.one)
                        sent = entry
                        if self.faults.breaks():
                            _drop(stream)
                            return
                    news.clear()
                    try:
                        await asyncio.wait_for(news.wait(), self.bookmark_s)
                    except TimeoutError:
                        at = {"metadata": {"resourceVersion": str(self.store.revision)}}
                        await _send(stream, "BOOKMARK", at)
        finally:
            self.store.unlisten(hear)


async def _send(stream: web.StreamResponse, kind: str, one: Object) -> None:
    await stream.write(json.dumps({"type": kind, "object": one}).encode() + b"\n")


def _drop(stream: web.StreamResponse) -> None:
    request: Any = stream._req
    if request is not None and request.transport is not None:
        request.transport.abort()


def _failed(request: web.Request, fault: Fault) -> web.StreamResponse:
    if fault.status == 0:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
    return _status(fault.status, fault.reason, fault.message, fault.retry_after_s)


def _status(code: int, reason: str, message: str, retry_after_s: int | None = None) -> web.Response:
    body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"message": message, "reason": reason, "code": code}
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response(body, status=code, headers=headers)


def _selectors(request: web.Request) -> tuple[dict[str, str], dict[str, str]]:
    return (
        _pairs(request.query.get("labelSelector", "")),
        _pairs(request.query.get("fieldSelector", "")),
    )


def _pairs(text: str) -> dict[str, str]:
    parts = (one.partition("=") for one in text.split(",") if one)
    return {key: value for key, _, value in parts}
