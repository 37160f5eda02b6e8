"""Makes, removes and lets go of the objects of an attempt; whatever is asked twice happens once."""

from __future__ import annotations

from collections.abc import Callable

from graft.kubernetes.job_template import owned
from graft.kubernetes.names import (
    ATTEMPT_LABEL,
    JOB_LABEL,
    NAMESPACE_LABEL,
    TOKEN_ANNOTATION,
)

from services.trainer.launchers.kubernetes.api import (
    KINDS,
    MERGE_PATCH,
    PODS,
    Api,
    ApiError,
    Kind,
    Object,
)
from services.trainer.launchers.kubernetes.reading import kept_of_pod

_NOT_FOUND, _CONFLICT = 404, 409
_CLEAN_UP_PATIENCE_S = 120.0

Hindered = Callable[[ApiError], None]


class Objects:
    """The objects of attempts in one namespace."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create_first(self, manifest: Object, hindered: Hindered) -> Object:
        """Creates what runs an attempt, or finds that an earlier try of ours did.

        Raises:
            ApiError: it is refused; nothing of it is there.
        """
        kind = KINDS[manifest["kind"]]
        name = manifest["metadata"]["name"]
        try:
            return await self._create(manifest, hindered)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
        path = kind.path(self._api.namespace, name)
        found = await self._api.call("GET", path, hindered=hindered)
        if _token_of(found) != _token_of(manifest):
            raise ApiError(
                _CONFLICT,
                "AlreadyExists",
                f"There is a {kind.name} {name} already that this trainer did not make; delete it",
            )
        return found

    async def create_rest(
        self, manifests: list[Object], owner: Object, kind: Kind, hindered: Hindered
    ) -> None:
        """Creates what an attempt's pods need, where it is not there yet. Raises ApiError."""
        typed = {**owner, "apiVersion": kind.api_version, "kind": kind.name}
        for manifest in manifests:
            try:
                await self._create(owned(manifest, typed), hindered)
            except ApiError as error:
                if error.status != _CONFLICT:
                    raise

    async def _create(self, manifest: Object, hindered: Hindered) -> Object:
        path = KINDS[manifest["kind"]].path(self._api.namespace)
        return await self._api.call("POST", path, manifest, hindered=hindered)

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
            await self._api.call(
                "PATCH",
                path,
                patch,
                content_type=MERGE_PATCH,
                patience_s=_CLEAN_UP_PATIENCE_S,
            )
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
