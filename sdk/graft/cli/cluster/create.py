"""Creates the objects of a job in the cluster of the user's kubeconfig, and says in words why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graft.errors import GraftError, Reason
from graft.kubernetes.api import MERGE_PATCH, Api, ApiError, Object
from graft.kubernetes.groups import GROUPS, Group
from graft.kubernetes.job_template import Manifest, before_owner, owned
from graft.kubernetes.kinds import TRAIN_JOBS, kind_of
from graft.kubernetes.refusals import Meaning, in_words

# Kubeflow's webhook may not have seen yet the runtime that was created just before.
_PATIENCE_S = 10.0


async def create_objects(api: Api, manifests: Sequence[Manifest]) -> None:
    """Creates the first, and all others as its own; all of them or none.

    Raises:
        GraftError: ALREADY_EXISTS, PERMISSION_DENIED, NAMESPACE_NOT_FOUND, INVALID_REQUEST (the API
            server refuses it), UNAVAILABLE.
    """
    first, *others = manifests
    made: list[Manifest] = []
    try:
        for one in [*filter(before_owner, others), first]:
            answer = await _post(api, one)
            made.append(one)
        owner = {**first, "metadata": answer["metadata"]}
        for one in others:
            if before_owner(one):
                await _give(api, one, owner)
            else:
                await _post(api, owned(one, owner))
    except GraftError:
        for one in reversed(made):
            await _delete(api, one)
        raise


async def installed_groups(api: Api) -> list[Group]:
    """What the cluster has for several nodes. Raises GraftError as create_objects."""
    try:
        return [one for one in GROUPS if one is Group.JOB or await api.serves(one.kind)]
    except ApiError as error:
        raise in_words(error, "its API groups", _meanings(api.namespace)) from None


async def _post(api: Api, manifest: Manifest) -> Object:
    path = kind_of(manifest).path(api.namespace)
    return await _call(api, "POST", path, manifest, manifest)


async def _give(api: Api, manifest: Manifest, owner: Manifest) -> None:
    """Makes what was there first a part of its owner, so that it goes with it."""
    references = {"ownerReferences": owned(manifest, owner)["metadata"]["ownerReferences"]}
    path = kind_of(manifest).path(api.namespace, manifest["metadata"]["name"])
    await _call(api, "PATCH", path, {"metadata": references}, manifest)


async def _delete(api: Api, manifest: Manifest) -> None:
    path = kind_of(manifest).path(api.namespace, manifest["metadata"]["name"])
    options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
    await _call(api, "DELETE", path, options | {"propagationPolicy": "Background"}, manifest)


async def _call(api: Api, method: str, path: str, body: Object, about: Manifest) -> Object:
    content_type = MERGE_PATCH if method == "PATCH" else "application/json"
    patience_s = _PATIENCE_S if about["kind"] == TRAIN_JOBS.name else 0.0
    try:
        return await api.call(method, path, body, content_type=content_type, patience_s=patience_s)
    except ApiError as error:
        what = f"{about['kind']} {about['metadata']['name']}"
        raise in_words(error, what, _meanings(api.namespace)) from None


def _meanings(namespace: str) -> Mapping[int, Meaning]:
    denied = Meaning(
        Reason.PERMISSION_DENIED,
        "The cluster does not allow it",
        f"Ask for the right to create jobs, cronjobs, configmaps and services in {namespace}.",
    )
    invalid = Meaning(
        Reason.INVALID_REQUEST,
        "The cluster refuses the {what}",
        "Mend what it names, in the spec or in the pod policy.",
    )
    missing = Meaning(
        Reason.NAMESPACE_NOT_FOUND,
        f"The cluster has no namespace {namespace}, or no such kind of object",
        "Name a namespace with --kube-namespace; `kubectl apply -k deploy/k8s/overlays/dev` makes graft.",
    )
    exists = Meaning(
        Reason.ALREADY_EXISTS,
        f"There is a {{what}} in the namespace {namespace} already",
        "Name this one otherwise with --name, or delete that one with kubectl.",
    )
    return {
        401: denied,
        403: denied,
        404: missing,
        409: exists,
        400: invalid,
        422: invalid,
    }
