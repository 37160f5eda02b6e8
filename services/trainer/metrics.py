"""The trainer's Prometheus metrics. A running job's own series vanish when it stops running."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trainer.jobs import Job, Metrics, StateChanged
from services.trainer.states import ACTIVE, JobState
from services.trainer.store.base import Changed

_WAIT_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)


class TrainerMetrics:
    """Jobs by state, attempts and restarts, waiting times, and figures of running jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Gauge("graft_trainer_jobs", "Jobs by state", ["state"], registry=registry)
        self._slots = Gauge("graft_trainer_slots", "Accelerator slots", ["use"], registry=registry)
        self._attempts = Counter(
            "graft_trainer_attempts", "Workers that were started", registry=registry
        )
        self._restarts = Counter(
            "graft_trainer_restarts",
            "Attempts that are to be followed by another",
            ["cause"],
            registry=registry,
        )
        self._queue_wait = Histogram(
            "graft_trainer_queue_wait_seconds",
            "Time from a job's place in the queue to its start",
            buckets=_WAIT_S,
            registry=registry,
        )
        self._by_job = {
            "loss": Gauge("graft_trainer_job_loss", "Last loss", ["job"], registry=registry),
            "tokens_per_second": Gauge(
                "graft_trainer_job_tokens_per_second", "Real tokens", ["job"], registry=registry
            ),
            "step": Gauge("graft_trainer_job_step", "Steps done", ["job"], registry=registry),
        }
        self._shown: set[str] = set()

    def reset(self, counts: Mapping[JobState, int]) -> None:
        """Sets the number of jobs in each state."""
        for state in JobState:
            self._jobs.labels(state.value).set(counts.get(state, 0))

    def created(self, job: Job) -> None:
        """A job was stored."""
        self._jobs.labels(job.state.value).inc()

    def slots(self, free: int, total: int) -> None:
        """Slots in use and free."""
        self._slots.labels("free").set(free)
        self._slots.labels("used").set(total - free)

    def restarted(self, cause: str) -> None:
        """An attempt ended whose job goes on: "lost" or "preempted"."""
        self._restarts.labels(cause).inc()

    def changed(self, changed: Changed) -> None:
        """A change with events was stored."""
        for event in changed.events:
            if isinstance(event.body, StateChanged):
                self._moved(changed.job, event.body, event.time)
            elif isinstance(event.body, Metrics):
                self._measured(changed.job.name, event.body)

    def _moved(self, job: Job, change: StateChanged, time: datetime) -> None:
        self._jobs.labels(change.before.value).dec()
        self._jobs.labels(change.after.value).inc()
        if change.after is JobState.RUNNING:
            self._attempts.inc()
            if job.queue_time is not None:
                waited = (time - job.queue_time).total_seconds()
                self._queue_wait.observe(max(0.0, waited))
        if change.after not in ACTIVE and job.name in self._shown:
            self._shown.discard(job.name)
            for gauge in self._by_job.values():
                gauge.remove(job.name)

    def _measured(self, name: str, metrics: Metrics) -> None:
        self._shown.add(name)
        for field, gauge in self._by_job.items():
            gauge.labels(name).set(getattr(metrics, field))
