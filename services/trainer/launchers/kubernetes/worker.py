"""One attempt on the cluster, as the trainer holds it: fed with what is seen of its Job and pods.

It ends when its Job has ended or is gone, and none of its pods runs any more. A Job that would run a
second pod for the attempt (Kueue suspends and resumes Jobs) is removed instead: the next attempt goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graft.kubernetes.api import ApiError, Object
from graft.kubernetes.group_template import TRAIN_CONTAINER
from graft.kubernetes.groups import Group
from graft.kubernetes.pod_template import CONTAINER

from services.common.logs import get_logger
from services.trainer.jobs import Finished
from services.trainer.launchers.base import Notice, Remains, Worker
from services.trainer.launchers.kubernetes.kinds import EXPIRING
from services.trainer.launchers.kubernetes.objects import Objects
from services.trainer.launchers.kubernetes.reading import (
    end_condition,
    end_of,
    exit_code_of,
    has_begun,
    is_over,
)
from services.trainer.launchers.kubernetes.words import standing
from services.trainer.states import FailureCause

_LOG_LINES = 40
# These ends say all there is to say.
_PLAIN_ENDS = (0, 75, 79)
_LOOK_AGAIN_S, _LONGEST_LOOK_S = 0.5, 15.0
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class KubernetesWorker(Worker):
    """A worker in a pod, or in several.

    Args:
        name: of its Job, JobSet or TrainJob.
        group: which of them.
        manifests: what it consists of, the Job or JobSet first.
        nodes: how many pods it has.
        keep_s: how long its Job is kept once its end is stored.
        objects: makes and removes them.
        warnings: messages of events about it, by reason.
        spawn: runs something for it in the background.
        forget: called once it is released.
    """

    def __init__(
        self,
        name: str,
        group: Group,
        manifests: list[Object],
        nodes: int,
        keep_s: int,
        objects: Objects,
        warnings: Mapping[str, str],
        spawn: Spawn,
        forget: Callable[[], None],
    ) -> None:
        self.name, self.kind = name, group.kind
        self._container = TRAIN_CONTAINER if group is Group.TRAINJOB else CONTAINER
        self._manifests, self._nodes, self._keep_s = manifests, nodes, keep_s
        self._objects, self._warnings = objects, warnings
        self._spawn, self._forget = spawn, forget
        self._job: Object | None = None
        self._job_gone = False
        self._parts: dict[str, Object] = {}
        self._pods: dict[str, Object] = {}
        self._gone_pods: set[str] = set()
        self._killed_pods: set[str] = set()
        self._creating: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._hindrance: ApiError | None = None
        self._displaced = self._terminated = self._killed = False
        self._begun = asyncio.Event()
        self._end: asyncio.Future[tuple[int | None, Remains]]
        self._end = asyncio.get_running_loop().create_future()
        self._heard: Callable[[Notice], None] | None = None
        self._said = ""

    @property
    def first(self) -> Object:
        """What runs it, as it is created."""
        return self._manifests[0]

    @property
    def handle(self) -> str:
        return self.name

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    async def until_begun(self) -> None:
        await self._begun.wait()

    async def wait(self) -> int | None:
        code, _remains = await asyncio.shield(self._end)
        return code

    async def remains(self) -> Remains:
        code, remains = await asyncio.shield(self._end)
        if code in _PLAIN_ENDS or remains.finished is not None or remains.disrupted:
            return remains
        lines = await self._last_lines()
        for line in lines:
            self._tell(line, standing_=False)
        return replace(remains, log_tail=lines[-1]) if lines else remains

    def listen(self, heard: Callable[[Notice], None]) -> None:
        self._heard = heard
        self._tell_standing()

    def create(self) -> None:
        """Brings its objects into being, however long that takes."""
        self._creating = self._spawn(self._create())

    def refuse(self, message: str) -> None:
        """It can never be made: why is its end."""
        self._ended(None, _refusal(message))

    def adopt(self, job: Object, pods: Sequence[Object], parts: Sequence[Object]) -> None:
        """Takes over what an earlier trainer created, and completes it where that one could not."""
        self._parts = {part["metadata"]["uid"]: part for part in parts}
        for pod in pods:
            self._pods[pod["metadata"]["uid"]] = pod
        self._job = job
        self._look()
        if self.begun:
            # Said by the trainer before.
            self._said = self._standing()
        elif not self._end.done():
            self._creating = self._spawn(self._complete())

    def adopt_rest(self, pods: Sequence[Object]) -> None:
        """Takes over what is left where its Job is gone: it ends when they have."""
        for pod in pods:
            self._pods[pod["metadata"]["uid"]] = pod
        self.see_job(self.first, deleted=True)

    def see_job(self, job: Object, deleted: bool) -> None:
        """Its Job, JobSet or TrainJob is new, another, or gone."""
        self._job, self._job_gone = job, self._job_gone or deleted
        self._look()

    def see_part(self, part: Object) -> None:
        """A Job that its JobSet made is new or another."""
        self._parts[part["metadata"]["uid"]] = part

    def see_pod(self, pod: Object, deleted: bool) -> None:
        """One of its pods is new, another, or gone."""
        uid = pod["metadata"]["uid"]
        self._pods[uid] = pod
        if deleted:
            self._gone_pods.add(uid)
        if self._killed:
            # Its Job may have made this one when the one before was killed, and before it went itself.
            self._kill_pods()
        self._look()

    def see_warning(self) -> None:
        """There is another event about it."""
        self._tell_standing()

    def terminate(self) -> None:
        if not self._end.done():
            self._terminated = True
            self._remove()

    def kill(self) -> None:
        if self._end.done() or self._killed:
            return
        self._killed = True
        self._remove()
        self._kill_pods()

    def _kill_pods(self) -> None:
        """Those that are known and still live; each once."""
        for pod in self._living():
            uid = pod["metadata"]["uid"]
            if uid not in self._killed_pods:
                self._killed_pods.add(uid)
                self._spawn(self._objects.kill_pod(pod["metadata"]["name"], uid))

    async def release(self) -> None:
        self._forget()
        if self._job is not None and not self._job_gone:
            self._spawn(self._let_go())

    async def _let_go(self) -> None:
        if self.kind in EXPIRING:
            await self._objects.expire(self.kind, self.name, self._keep_s)
        else:
            await self._objects.delete(self.kind, self.name, self._uid)

    async def _create(self) -> None:
        try:
            self._saw_created(await self._objects.create_first(self._manifests, self._hindered))
            await self._complete()
        except ApiError as error:
            self._refused(error)

    async def _complete(self) -> None:
        assert self._job is not None
        try:
            await self._objects.create_rest(self._manifests, self._job, self.kind, self._hindered)
        except ApiError as error:
            self._refused(error)

    def _saw_created(self, job: Object) -> None:
        self._hindrance = None
        # The watch may have told more of it already.
        if self._job is None:
            self.see_job(job, deleted=False)

    def _hindered(self, error: ApiError) -> None:
        self._hindrance = error
        self._tell_standing()

    def _refused(self, error: ApiError) -> None:
        """It can never run: what there is of it goes, and why is the end of the job."""
        if self._killed or self._terminated or self._job_gone:
            return
        message = (
            f"Kubernetes refused the attempt ({error.status} {error.reason}): {error.message}. "
            "Change the pod policy, the trainer's Role or the webhook that it names."
        )
        get_logger().warning("attempt refused", name=self.name, error=error.message)
        remains = _refusal(message)
        if self._job is None:
            self._ended(None, remains)
        else:
            self._spawn(self._end_refused(remains))

    async def _end_refused(self, remains: Remains) -> None:
        await self._objects.delete(self.kind, self.name, self._uid)
        self._ended(None, remains)

    def _remove(self) -> None:
        if self._removing is None:
            self._removing = self._spawn(self._delete())

    async def _delete(self) -> None:
        if self._creating is not None and not self._creating.done():
            # A creation that is on its way may still arrive; without its Secret nothing of it can run.
            self._creating.cancel()
            await asyncio.wait({self._creating})
            if self._job is None:
                await self._objects.undo(self._manifests)
        again_s = _LOOK_AGAIN_S
        while await self._objects.delete(self.kind, self.name, self._uid):
            # What becomes of it is seen, unless it came and went between two lists.
            await asyncio.wait({self._end}, timeout=again_s)
            if self._end.done():
                return
            again_s = min(2 * again_s, _LONGEST_LOOK_S)
        if self._job is None:
            self._ended(None, Remains())
        else:
            self.see_job(self._job, deleted=True)

    @property
    def _uid(self) -> str:
        return str(self._job["metadata"]["uid"]) if self._job is not None else ""

    def _living(self) -> list[Object]:
        return [
            pod
            for uid, pod in self._pods.items()
            if uid not in self._gone_pods and not is_over(pod)
        ]

    def _look(self) -> None:
        """Draws the conclusions from what was seen last."""
        if self._end.done():
            return
        if any(has_begun(pod) for pod in self._pods.values()):
            self._begun.set()
        living = self._living()
        over = end_condition(self._job) is not None if self._job is not None else False
        if (over or self._job_gone) and not living:
            self._conclude()
        elif not over and self._would_run_again(living):
            self._displaced = True
            self._remove()
        self._tell_standing()

    def _would_run_again(self, living: list[Object]) -> bool:
        suspended = self._job is not None and bool(self._job.get("spec", {}).get("suspend"))
        if suspended:
            return bool(self._pods) and not living
        return len(self._pods) > self._nodes

    def _conclude(self) -> None:
        """Its end is near; whether no pod is left, and how it ended, may not have been seen yet."""
        known = any(exit_code_of(pod) is not None for pod in self._pods.values())
        if known and not self._job_gone:
            self._sum_up()
        elif self._asking is None:
            # The deletion of a Job can be seen before its pods are: each kind of object has a watch of its own.
            self._asking = self._spawn(self._ask())

    async def _ask(self) -> None:
        again_s = _LOOK_AGAIN_S
        while not self._end.done() and await self._any_left():
            await asyncio.wait({self._end}, timeout=again_s)
            again_s = min(2 * again_s, _LONGEST_LOOK_S)
        self._sum_up()

    async def _any_left(self) -> bool:
        """Whether a pod of it still runs, or nobody can say that."""
        try:
            found = {
                pod["metadata"]["uid"]: pod for pod in await self._objects.pods_of(self._job or {})
            }
        except ApiError as error:
            get_logger().warning("pods not found", name=self.name, error=error.message)
            return True
        self._pods |= found
        self._gone_pods |= self._pods.keys() - found.keys()
        if self._killed:
            self._kill_pods()
        return bool(self._living())

    def _sum_up(self) -> None:
        code, remains = end_of(self._job, list(self._pods.values()), self._parts.values())
        asked = self._terminated and not self._killed
        if code != 0 and (asked or self._displaced):
            because = "its pod was taken away" if self._displaced else ""
            remains = replace(remains, disrupted=True, because=remains.because or because)
        elif self._job_gone and not (remains.because or asked or self._killed):
            remains = replace(remains, because="its Job was deleted by somebody else")
        self._ended(code, remains)

    def _ended(self, code: int | None, remains: Remains) -> None:
        if not self._end.done():
            self._end.set_result((code, remains))
            self._begun.set()

    async def _last_lines(self) -> list[str]:
        for uid, pod in self._pods.items():
            if uid not in self._gone_pods:
                name = pod["metadata"]["name"]
                return await self._objects.log_tail(name, self._container, _LOG_LINES)
        return []

    def _standing(self) -> str:
        pods = [pod for uid, pod in self._pods.items() if uid not in self._gone_pods]
        return standing(self._job, pods, self._warnings, self._hindrance)

    def _tell_standing(self) -> None:
        if self._end.done() or self._heard is None:
            return
        text = self._standing()
        if text and text != self._said:
            self._said = text
            self._tell(text, standing_=True)

    def _tell(self, text: str, standing_: bool) -> None:
        if self._heard is not None:
            self._heard(Notice(text, standing_))


def _refusal(message: str) -> Remains:
    return Remains(finished=Finished(cause=FailureCause.BAD_CONFIG, message=message))
