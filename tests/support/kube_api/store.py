"""Objects with a revision that all share, and what happened to them: what an API server keeps in etcd."""

from __future__ import annotations

import copy
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


class Refused(Exception):
    """An answer that is no success: its HTTP status, its reason and its message."""

    def __init__(
        self, status: int, reason: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened: ADDED, MODIFIED or DELETED."""

    revision: int
    kind: str
    plural: str
    one: Object


Listener = Callable[[Entry], None]


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects of all kinds.

    Attributes:
        log: what happened since the last compaction.
        created: names of everything that was ever created, by plural, in order.
    """

    def __init__(self) -> None:
        self.revision = 100
        self.log: list[Entry] = []
        self.compacted = 0
        self.created: dict[str, list[str]] = {}
        self._objects: defaultdict[str, dict[tuple[str, str], Object]] = defaultdict(dict)
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Calls it for every change from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Calls it no more."""
        self._listeners.remove(listener)

    def compact(self) -> None:
        """Forgets what happened: who wants to resume from before gets 410 Gone."""
        self.compacted = self.revision
        self.log.clear()

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        found = self._objects[plural].get((namespace, name))
        return copy.deepcopy(found) if found is not None else None

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """An object; Refused 404 without."""
        found = self.find(plural, namespace, name)
        if found is None:
            raise Refused(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def all(self, plural: str, matches: Callable[[Object], bool] = lambda _: True) -> list[Object]:
        """The objects of a kind, oldest first; not to be changed."""
        return [one for one in self._objects[plural].values() if matches(one)]

    def create(self, plural: str, namespace: str, one: Object) -> Object:
        """A new object; Refused 409 where its name is taken."""
        meta = dict(one["metadata"])
        if (namespace, meta["name"]) in self._objects[plural]:
            message = f'{plural} "{meta["name"]}" already exists'
            raise Refused(409, "AlreadyExists", message)
        meta |= {
            "namespace": namespace,
            "uid": secrets.token_hex(16),
            "creationTimestamp": now(),
            "generation": 1,
        }
        self.created.setdefault(plural, []).append(meta["name"])
        return self._put("ADDED", plural, {**copy.deepcopy(one), "metadata": meta})

    def update(self, plural: str, one: Object) -> Object:
        """Another state of an object; nothing where it is gone."""
        meta = one["metadata"]
        known = self._objects[plural].get((meta["namespace"], meta["name"]))
        if known is None or known["metadata"]["uid"] != meta["uid"]:
            return one
        if _without_version(known) == _without_version(one):
            return known
        return self._put("MODIFIED", plural, one)

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """Takes an object away."""
        known = self._objects[plural].get((namespace, name))
        if known is not None:
            self._put("DELETED", plural, known)

    def _put(self, kind: str, plural: str, one: Object) -> Object:
        self.revision += 1
        stored = copy.deepcopy(one)
        stored["metadata"]["resourceVersion"] = str(self.revision)
        key = (stored["metadata"]["namespace"], stored["metadata"]["name"])
        if kind == "DELETED":
            del self._objects[plural][key]
        else:
            self._objects[plural][key] = stored
        entry = Entry(self.revision, kind, plural, stored)
        self.log.append(entry)
        for listener in list(self._listeners):
            listener(entry)
        return copy.deepcopy(stored)


def _without_version(one: Object) -> Object:
    return {**one, "metadata": {**one["metadata"], "resourceVersion": ""}}


def merge_patch(base: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def selected(one: Object, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    """Whether an object has all labels and fields of a selector."""
    has = one["metadata"].get("labels") or {}
    return all(has.get(key) == value for key, value in labels.items()) and all(
        _field(one, path) == value for path, value in fields.items()
    )


def _field(one: Any, path: str) -> str:
    for part in path.split("."):
        one = one.get(part, {})
    return one if isinstance(one, str) else ""
