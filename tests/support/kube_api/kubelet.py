"""Places pods on a node and runs their containers, as far as a scripted run goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.kube_api.controller import is_over, set_condition
from tests.support.kube_api.runs import Ended, PodRun, Started
from tests.support.kube_api.store import Entry, Object, Store

Place = Callable[[Object], Object | None]


class Kubelet:
    """Runs the pods of a store.

    Args:
        store: the objects.
        volumes: where volumes are on this machine.
        start: makes the run of a pod.
        node: its name.

    Attributes:
        runs: by pod name.
        hinder: what keeps a pod from running: its status instead, or None; see hold().
        node: the name of the node that takes pods from now on.
        forgetful: whether folders that are no claim's end with their pod, as on a real node.
    """

    def __init__(
        self,
        store: Store,
        volumes: Path,
        start: Callable[[Started], PodRun],
        node: str = "node-1",
    ) -> None:
        self._store, self._volumes, self._start, self.node = store, volumes, start, node
        self.forgetful = False
        self.runs: dict[str, PodRun] = {}
        self.hinder: Place = lambda _pod: None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, str] = {}
        store.listen(self._heard)

    async def stop(self) -> None:
        """Ends everything that runs."""
        self._store.unlisten(self._heard)
        for run in list(self.runs.values()):
            run.kill()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def look_again(self) -> None:
        """Tries to start pods that were hindered."""
        for name, namespace in list(self._waiting.items()):
            if (pod := self._store.find("pods", namespace, name)) is not None:
                self._place(pod)

    def _heard(self, entry: Entry) -> None:
        meta = entry.one["metadata"]
        if entry.plural == "persistentvolumeclaims" and entry.kind == "ADDED":
            asyncio.get_running_loop().call_soon(self.look_again)
        if entry.plural in ("configmaps", "secrets") and entry.kind == "ADDED":
            asyncio.get_running_loop().call_soon(self._look_for, meta["namespace"], meta["name"])
        if entry.plural != "pods":
            return
        if entry.kind == "ADDED":
            asyncio.get_running_loop().call_soon(self._place_named, meta["namespace"], meta["name"])
        elif entry.kind == "MODIFIED" and "deletionTimestamp" in meta and not is_over(entry.one):
            asyncio.get_running_loop().call_soon(self._end, entry.one)

    def _look_for(self, namespace: str, job: str) -> None:
        for name in [one for one in self._waiting if one.startswith(job + "-")]:
            self._place_named(namespace, name)

    def _place_named(self, namespace: str, name: str) -> None:
        if (pod := self._store.find("pods", namespace, name)) is not None:
            self._place(pod)

    def _place(self, pod: Object) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        if name in self.runs or is_over(pod) or "deletionTimestamp" in pod["metadata"]:
            return
        self._waiting[name] = namespace
        if (status := self.hinder(pod)) is not None:
            pod["status"] = {"phase": "Pending", **status}
            self._store.update("pods", pod)
            return
        pod["spec"]["nodeName"] = self.node
        if (started := self._started(pod)) is None:
            self._store.update("pods", pod)
            return
        del self._waiting[name]
        self.runs[name] = self._start(started)
        self._set_state(pod, "Running", {"running": {}})
        self._tasks[name] = asyncio.ensure_future(self._run(pod, self.runs[name]))

    def _started(self, pod: Object) -> Started | None:
        """What its container is started with; None while a volume or a variable is not there."""
        namespace, (container, *_) = pod["metadata"]["namespace"], pod["spec"]["containers"]
        environment: dict[str, str] = {}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if (wanted := source.get("secretKeyRef")) is not None:
                secret = self._store.find("secrets", namespace, wanted["name"])
                if secret is None:
                    return None
                environment[variable["name"]] = secret["stringData"][wanted["key"]]
            elif (field := source.get("fieldRef")) is not None:
                environment[variable["name"]] = _field(pod, field["fieldPath"])
            elif "value" in variable:
                environment[variable["name"]] = _expanded(variable["value"], environment)
        spec, work = "", self._volumes
        for volume in pod["spec"].get("volumes", []):
            if (wanted := volume.get("configMap")) is not None:
                found = self._store.find("configmaps", namespace, wanted["name"])
                if found is None:
                    return None
                spec = found["data"]["spec.json"]
            if volume["name"] == "work":
                place = self._work_volume(pod, volume)
                if place is None:
                    return None
                work = place
        return Started(pod, container.get("command", []), environment, spec, work)

    def _work_volume(self, pod: Object, volume: Object) -> Path | None:
        """Where the folder of checkpoints is; None while its claim is not there."""
        meta = pod["metadata"]
        if (wanted := volume.get("persistentVolumeClaim")) is not None:
            name = wanted["claimName"]
            found = self._store.find("persistentvolumeclaims", meta["namespace"], name)
            return None if found is None else self._volumes / "claims" / name
        return self._volumes / self.node / meta["name"] if self.forgetful else self._volumes

    async def _run(self, pod: Object, run: PodRun) -> None:
        self._set_ended(pod, await run.run())

    def _end(self, pod: Object) -> None:
        """What deletion means to a pod: told to end, and killed where its grace period is (nearly) none."""
        meta = pod["metadata"]
        run = self.runs.get(meta["name"])
        if run is None:
            # Never ran. Nothing of it has to end.
            self._waiting.pop(meta["name"], None)
            self._store.remove("pods", meta["namespace"], meta["name"])
            return
        grace_s = meta["deletionGracePeriodSeconds"]
        if grace_s <= 1:
            run.kill()
            return
        run.terminate()
        asyncio.get_running_loop().call_later(grace_s, run.kill)

    def _set_state(self, pod: Object, phase: str, state: Object) -> None:
        meta = pod["metadata"]
        current = self._store.find("pods", meta["namespace"], meta["name"])
        if current is None or current["metadata"]["uid"] != meta["uid"]:
            return
        current["spec"].setdefault("nodeName", pod["spec"]["nodeName"])
        container = current["spec"]["containers"][0]
        current.setdefault("status", {})["phase"] = phase
        current["status"]["containerStatuses"] = [
            {"name": container["name"], "image": container["image"], "state": state}
        ]
        self._store.update("pods", current)
        if is_over(current) and "deletionTimestamp" in current["metadata"]:
            jobs = current["metadata"]["labels"].get("batch.kubernetes.io/job-name", "")
            if self._store.find("jobs", meta["namespace"], jobs) is None:
                self._store.remove("pods", meta["namespace"], meta["name"])

    def _set_ended(self, pod: Object, ended: Ended) -> None:
        reason = ended.reason or ("Error" if ended.exit_code else "Completed")
        state = {"exitCode": ended.exit_code, "reason": reason, "message": ended.message}
        phase = "Failed" if ended.exit_code else "Succeeded"
        self._set_state(pod, phase, {"terminated": state})

    def evict(self, name: str, namespace: str, why: str = "EvictionByEvictionAPI") -> None:
        """A drain or a preemption: marked as disrupted, then told to end."""
        pod = self._store.get("pods", namespace, name)
        set_condition(pod, "DisruptionTarget", "True", why, f"Eviction API: {why}")
        pod["metadata"].setdefault("deletionTimestamp", "now")
        pod["metadata"]["deletionGracePeriodSeconds"] = pod["spec"].get(
            "terminationGracePeriodSeconds", 30
        )
        self._store.update("pods", pod)


def _field(pod: Object, path: str) -> str:
    """What the downward API says: metadata.labels['...'], metadata.annotations['...'] or metadata.name."""
    place, _, key = path.removeprefix("metadata.").partition("['")
    found = pod["metadata"][place]
    return str(found[key.removesuffix("']")] if key else found)


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """A variable is put into those that come after it."""
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text
