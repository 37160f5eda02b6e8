"""The garbage collector, small: what is owned goes when its owner goes; and a loop that controllers share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict

from tests.support.kube_api.store import Entry, Object, Store, now

Key = tuple[str, str, str]


def owner_uids(one: Object) -> list[str]:
    """Of an object's owners."""
    return [str(owner["uid"]) for owner in one["metadata"].get("ownerReferences") or []]


def end_later(store: Store, plural: str, one: Object) -> None:
    """What deletion means to something whose parts have to go first."""
    if "deletionTimestamp" not in one["metadata"]:
        one["metadata"]["deletionTimestamp"] = now()
        store.update(plural, one)


class Collector:
    """Takes away what nobody owns any more. Pods are their Jobs' business.

    Args:
        store: the objects.
        slowly: plurals whose objects have parts of their own, which go first.
    """

    def __init__(self, store: Store, slowly: tuple[str, ...] = ("jobs", "jobsets")) -> None:
        self._store, self._slowly = store, slowly
        self._owned: defaultdict[str, set[Key]] = defaultdict(set)
        store.listen(self._heard)

    def _heard(self, entry: Entry) -> None:
        meta = entry.one["metadata"]
        if entry.kind == "DELETED":
            for key in sorted(self._owned.pop(meta["uid"], ())):
                self._orphan(*key, meta["uid"])
        elif entry.plural != "pods":
            for uid in owner_uids(entry.one):
                self._owned[uid].add((entry.plural, meta["namespace"], meta["name"]))

    def _orphan(self, plural: str, namespace: str, name: str, gone: str) -> None:
        one = self._store.find(plural, namespace, name)
        if one is None or set(owner_uids(one)) != {gone}:
            return
        if plural in self._slowly:
            end_later(self._store, plural, one)
        else:
            self._store.remove(plural, namespace, name)


class Controller(ABC):
    """Looks at objects of one kind again whenever something happened to them or to their parts.

    Args:
        store: the objects.
        plural: of what it keeps.
        parts: plural of what it makes, which has its owner's name among its owners.
    """

    def __init__(self, store: Store, plural: str, parts: str) -> None:
        self.store, self._plural, self._parts = store, plural, parts
        self._dirty: dict[tuple[str, str], None] = {}
        self._news = asyncio.Event()
        store.listen(self._heard)
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Does nothing more."""
        self.store.unlisten(self._heard)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @abstractmethod
    def reconcile(self, one: Object) -> None:
        """Makes the world what an object says."""

    def _heard(self, entry: Entry) -> None:
        meta = entry.one["metadata"]
        if entry.plural == self._plural:
            self._mark(meta["namespace"], meta["name"])
        elif entry.plural == self._parts:
            for owner in meta.get("ownerReferences") or []:
                self._mark(meta["namespace"], owner["name"])

    def _mark(self, namespace: str, name: str) -> None:
        self._dirty[namespace, name] = None
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._dirty:
                key = next(iter(self._dirty))
                del self._dirty[key]
                one = self.store.find(self._plural, *key)
                if one is not None:
                    self.reconcile(one)
                await asyncio.sleep(0)
