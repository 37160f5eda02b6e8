"""Keeps what the API server has of one kind: one list, then one watch that is resumed where it broke.

A watch that can no longer be resumed (410 Gone) means one more list; what vanished meanwhile is told as
deleted. What comes twice or late is told once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import aclosing

from graft.kubernetes.api import Api, ApiError, Object, Pauses, Query, status_error
from graft.kubernetes.kinds import Kind

from services.common.logs import get_logger

# The server ends a watch itself after some minutes; bookmarks come about every minute before.
_SHORTEST_WATCH_S, _LONGEST_WATCH_S = 240, 480
_SILENCE_S = 90.0
_PAGE = "2000"
_GONE = 410
# Deletions that are remembered, against what is told of an object after its end.
_REMEMBERED = 10_000

Told = Callable[[Object, bool], None]


class Mirror:
    """All objects of one kind that a selector selects.

    Args:
        api: the namespace's calls.
        kind: of the objects.
        selector: labelSelector or fieldSelector with its value.
        told: called with each object that is new or another, and whether it was deleted.
        kept: what of an object is kept; the rest is let go of.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        selector: tuple[str, str],
        told: Told,
        kept: Callable[[Object], Object] = lambda one: one,
    ) -> None:
        self._api, self._kind, self._selector = api, kind, selector
        self._told, self._kept = told, kept
        self._objects: dict[str, Object] = {}
        self._ended: dict[str, None] = {}
        self._version = ""
        self._task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    def get(self, name: str) -> Object | None:
        """The object of a name."""
        return self._objects.get(name)

    async def open(self) -> None:
        """Lists, and watches from there on. Raises ApiError when it is not allowed or nothing answers."""
        await self._list(patience_s=60.0)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def put(self, one: Object) -> None:
        """Takes in what another call answered, where it is newer than what is known."""
        self._update(one, deleted=False)

    async def _list(self, patience_s: float | None) -> None:
        listed: dict[str, Object] = {}
        token = ""
        while True:
            query = [self._selector, ("limit", _PAGE)]
            if token:
                query.append(("continue", token))
            try:
                page = await self._api.call("GET", self._path, query=query, patience_s=patience_s)
            except ApiError as error:
                if error.status == _GONE and token:
                    token, listed = "", {}
                    continue
                raise
            for one in page.get("items") or []:
                listed[one["metadata"]["name"]] = one
            token = page["metadata"].get("continue", "")
            if not token:
                break
        self._version = page["metadata"]["resourceVersion"]
        self._replace(listed)

    def _replace(self, listed: dict[str, Object]) -> None:
        for name, known in list(self._objects.items()):
            if name not in listed or _uid(listed[name]) != _uid(known):
                self._forget(known)
        for one in listed.values():
            self._update(one, deleted=False)

    async def _run(self) -> None:
        pauses = Pauses()
        while True:
            try:
                if not self._version:
                    await self._list(patience_s=None)
                await self._watch(pauses)
            except ApiError as error:
                if error.status == _GONE:
                    self._version = ""
                    get_logger().info("watch too old, listing again", kind=self._kind.name)
                elif error.status:
                    get_logger().warning("watch broke", kind=self._kind.name, error=error.message)
                await pauses.wait(error)
            except Exception as error:
                # A fault of ours with one object must not end the watch of all.
                get_logger().error("watch failed", kind=self._kind.name, exc_info=error)
                self._version = ""
                await pauses.wait()

    async def _watch(self, pauses: Pauses) -> None:
        query: Query = [
            self._selector,
            ("watch", "true"),
            ("resourceVersion", self._version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(random.randint(_SHORTEST_WATCH_S, _LONGEST_WATCH_S))),
        ]
        async with aclosing(self._api.lines(self._path, query, _SILENCE_S)) as events:
            async for event in events:
                kind, one = event.get("type"), event.get("object") or {}
                if kind == "ERROR":
                    raise status_error(one)
                self._version = one["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._update(one, deleted=kind == "DELETED")
                pauses.reset()
        # The server ended it, as it does from time to time: on from where it was, not all at once.
        await asyncio.sleep(random.uniform(0.0, 0.2))

    def _update(self, one: Object, deleted: bool) -> None:
        known = self._objects.get(one["metadata"]["name"])
        if _uid(one) in self._ended or (known is None and deleted):
            return
        if known is not None and _uid(known) != _uid(one):
            if deleted:
                return
            self._forget(known)
        elif known is not None and not deleted and _number(one) <= _number(known):
            return
        kept = self._kept(one)
        if deleted:
            self._forget(kept)
        else:
            self._objects[one["metadata"]["name"]] = kept
            self._told(kept, False)

    def _forget(self, one: Object) -> None:
        self._objects.pop(one["metadata"]["name"], None)
        self._ended[_uid(one)] = None
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._told(one, True)

    @property
    def _path(self) -> str:
        return self._kind.path(self._api.namespace)


def _uid(one: Object) -> str:
    return str(one["metadata"].get("uid", ""))


def _number(one: Object) -> int:
    """Resource versions of one kind are numbers that grow (KEP-5504)."""
    text = str(one["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0
