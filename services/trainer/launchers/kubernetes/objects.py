"""Makes, removes and lets go of the objects of an attempt; whatever is asked twice happens once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from graft.kubernetes.api import MERGE_PATCH, Api, ApiError, Object
from graft.kubernetes.job_template import before_owner, outlives_owner, owned, reference
from graft.kubernetes.kinds import CLAIMS, KINDS, PODS, RUNTIMES, Kind
from graft.kubernetes.names import (
    ATTEMPT_LABEL,
    JOB_LABEL,
    NAMESPACE_LABEL,
    TOKEN_ANNOTATION,
)

from services.trainer.launchers.kubernetes.reading import kept_of_pod

_NOT_FOUND, _CONFLICT = 404, 409
_CLEAN_UP_PATIENCE_S = 120.0

Hindered = Callable[[ApiError], None]


class Objects:
    """The objects of attempts in one namespace."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create_first(self, manifests: Sequence[Object], hindered: Hindered) -> Object:
        """Creates what runs an attempt, or finds that an earlier try of ours did.

        Args:
            manifests: of the attempt, what runs it first.

        Raises:
            ApiError: it is refused; nothing of it is there.
        """
        manifest = manifests[0]
        kind = KINDS[manifest["kind"]]
        name = manifest["metadata"]["name"]
        try:
            for one in filter(before_owner, manifests):
                await self._create_once(one, hindered)
            return await self._create(manifest, hindered)
        except ApiError as error:
            if error.status != _CONFLICT:
                await self.undo(manifests)
                raise
        found = await self._call("GET", kind.path(self._api.namespace, name), hindered=hindered)
        if _token_of(found) != _token_of(manifest):
            raise ApiError(
                _CONFLICT,
                "AlreadyExists",
                f"There is a {kind.name} {name} already that this trainer did not make; delete it",
            )
        return found

    async def create_rest(
        self, manifests: Sequence[Object], owner: Object, kind: Kind, hindered: Hindered
    ) -> None:
        """Creates what an attempt's pods need, where it is not there yet. Raises ApiError."""
        typed = {**owner, "apiVersion": kind.api_version, "kind": kind.name}
        for manifest in manifests[1:]:
            if before_owner(manifest):
                await self._give(manifest, [reference(typed)], hindered)
            elif not outlives_owner(manifest):
                await self._create_once(owned(manifest, typed), hindered)
            elif not await self._create_once(manifest, hindered):
                # Of an earlier attempt, whose end may have been taken for the job's.
                await self._give(manifest, None, hindered)

    async def undo(self, manifests: Sequence[Object]) -> None:
        """Removes what was there before what runs an attempt, which now never comes. Raises ApiError."""
        for one in filter(before_owner, manifests):
            await self.delete(KINDS[one["kind"]], one["metadata"]["name"], "")

    async def _create(self, manifest: Object, hindered: Hindered) -> Object:
        path = KINDS[manifest["kind"]].path(self._api.namespace)
        return await self._call("POST", path, manifest, hindered=hindered)

    async def _create_once(self, manifest: Object, hindered: Hindered) -> bool:
        """Whether it had to be created."""
        try:
            await self._create(manifest, hindered)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True

    async def _give(
        self, manifest: Object, owners: list[Object] | None, hindered: Hindered
    ) -> None:
        """Says whose part an object is; None: nobody's."""
        path = KINDS[manifest["kind"]].path(self._api.namespace, manifest["metadata"]["name"])
        await self._patch(path, {"metadata": {"ownerReferences": owners}}, hindered=hindered)

    async def _patch(self, path: str, patch: Object, **more: Any) -> None:
        await self._call("PATCH", path, patch, content_type=MERGE_PATCH, **more)

    async def _call(
        self, method: str, path: str, body: Object | None = None, **more: Any
    ) -> Object:
        return await self._api.call(method, path, body, **more)

    async def let_claim_go(self, name: str, owner: Object | None) -> None:
        """Has a job's claim go with its last attempt's object, or at once without one. Raises ApiError."""
        path = CLAIMS.path(self._api.namespace, name)
        if owner is None:
            await self.delete(CLAIMS, name, "")
            return
        patch = {"metadata": {"ownerReferences": [reference(owner)]}}
        try:
            await self._patch(path, patch, patience_s=_CLEAN_UP_PATIENCE_S)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise

    async def drop_claims(self, selector: tuple[str, str], kept: Collection[str]) -> None:
        """Deletes claims of jobs that have ended while nobody looked. Raises ApiError."""
        path = CLAIMS.path(self._api.namespace)
        for claim in await self._api.items(path, [selector], patience_s=_CLEAN_UP_PATIENCE_S):
            meta = claim["metadata"]
            if meta["name"] not in kept and not meta.get("ownerReferences"):
                await self.delete(CLAIMS, meta["name"], meta["uid"])

    async def drop_runtimes(self, selector: tuple[str, str], kept: Collection[str]) -> None:
        """Deletes runtimes whose TrainJob never came to be. Raises ApiError."""
        path = RUNTIMES.path(self._api.namespace)
        for runtime in await self._api.items(path, [selector], patience_s=_CLEAN_UP_PATIENCE_S):
            meta = runtime["metadata"]
            if meta["name"] not in kept and not meta.get("ownerReferences"):
                await self.delete(RUNTIMES, meta["name"], meta["uid"])

    async def delete(self, kind: Kind, name: str, uid: str) -> bool:
        """Deletes an attempt's object; it stays until its pods have ended, within their grace period.

        Args:
            uid: of the very object; "" for whatever has the name.

        Returns:
            False when there is none.
        """
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
        }
        if uid:
            options["preconditions"] = {"uid": uid}
        return await self._delete(kind.path(self._api.namespace, name), options)

    async def kill_pod(self, name: str, uid: str) -> None:
        """Ends a pod at once; its node still has to say that it has ended."""
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 1,
            "preconditions": {"uid": uid},
        }
        await self._delete(PODS.path(self._api.namespace, name), options)

    async def _delete(self, path: str, options: Object) -> bool:
        try:
            await self._api.call("DELETE", path, options)
        except ApiError as error:
            # A conflict: another object has the name now, so that ours is gone.
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise
            return False
        return True

    async def expire(self, kind: Kind, name: str, keep_s: int) -> None:
        """Has an ended attempt's object go after a time: its end is stored. Raises ApiError."""
        path = kind.path(self._api.namespace, name)
        patch = {"spec": {"ttlSecondsAfterFinished": keep_s}}
        try:
            await self._patch(path, patch, patience_s=_CLEAN_UP_PATIENCE_S)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise

    async def pods_of(self, job: Object) -> list[Object]:
        """The pods of an attempt as they are now. Raises ApiError."""
        labels = job["metadata"]["labels"]
        names = (NAMESPACE_LABEL, JOB_LABEL, ATTEMPT_LABEL)
        selector = ",".join(f"{name}={labels[name]}" for name in names)
        path = PODS.path(self._api.namespace)
        query = [("labelSelector", selector)]
        found = await self._api.call("GET", path, query=query, patience_s=_CLEAN_UP_PATIENCE_S)
        return [kept_of_pod(one) for one in found.get("items") or []]

    async def log_tail(self, pod: str, container: str, lines: int) -> list[str]:
        """The last lines that a pod wrote; none where they are gone."""
        query = [("container", container), ("tailLines", str(lines)), ("limitBytes", "65536")]
        try:
            text = await self._api.text(PODS.path(self._api.namespace, pod, "log"), query)
        except ApiError:
            return []
        return [line for line in text.splitlines() if line.strip()]


def _token_of(one: Object) -> str:
    return str((one["metadata"].get("annotations") or {}).get(TOKEN_ANNOTATION, ""))
