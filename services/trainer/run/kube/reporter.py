"""Reports of a worker in a Job that no trainer hears: on standard output, and in short on the Job itself."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress

import aiohttp
from graft.trainer.v1.worker_service_pb2 import Finished, SessionRequest

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.kube.access import JobApi
from services.trainer.run.kube.status import JobStatus
from services.trainer.run.reporters import Reporter

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_PATIENCE_S, _PREEMPTED_PATIENCE_S = 15.0, 3.0


class JobReporter(Reporter):
    """Writes on the Job beside another reporter. Whatever becomes of that, the training goes on.

    Args:
        loop: the background loop that it lives on.
        api: of the Job.
        inner: gets every report as well.
        every_s: at most so often figures are written.
    """

    def __init__(self, loop: BackgroundLoop, api: JobApi, inner: Reporter, every_s: float) -> None:
        self._loop = loop
        self._api = api
        self._inner = inner
        self._every_s = every_s
        self._lock = threading.Lock()
        self._status = JobStatus()
        self._written: dict[str, str] = {}
        self._complained = False
        self._urgent, self._at_rest = asyncio.Event(), threading.Event()
        loop.start(self._keep_writing())

    def send(self, report: SessionRequest) -> None:
        self._inner.send(report)
        with self._lock:
            self._at_rest.clear()
            urgent = self._status.take(report)
        if urgent:
            self._loop.call(self._urgent.set)

    def finish(self, report: Finished) -> None:
        self.send(SessionRequest(finished=report))
        # Whoever preempts goes away soon; the pod's own end says the same.
        self._at_rest.wait(_PREEMPTED_PATIENCE_S if report.preempted else _PATIENCE_S)

    async def _keep_writing(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._urgent.clear()
            try:
                await self._write()
                pause_s, rest_s = _FIRST_PAUSE_S, self._every_s
            except (aiohttp.ClientError, OSError, TimeoutError, KeyError, ValueError) as error:
                self._complain(error)
                rest_s, pause_s = pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), rest_s)

    async def _write(self) -> None:
        with self._lock:
            wanted = dict(self._status.annotations)
            events = list(self._status.events)
        if wanted != self._written:
            await self._api.annotate(wanted)
            self._written = wanted
        for event in events:
            await self._api.record(event)
            with self._lock:
                self._status.events.remove(event)
        with self._lock:
            if not self._status.events and self._status.annotations == self._written:
                self._at_rest.set()

    def _complain(self, error: Exception) -> None:
        """Says once, in the pod's log, that nothing reaches the Job."""
        if self._complained:
            return
        self._complained = True
        hint = ""
        if isinstance(error, aiohttp.ClientResponseError) and error.status in (401, 403):
            hint = " Its service account needs the verbs patch on jobs and create on events."
        print(
            f"The Job's annotations and events cannot be written ({error!r}); the training goes on.{hint}",
            file=sys.stderr,
            flush=True,
        )
