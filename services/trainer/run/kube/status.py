"""What a worker's reports mean for its Job: annotations that say where it is, and events for what happened."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from graft.common.v1 import common_pb2 as common
from graft.trainer.v1 import stages_pb2
from graft.trainer.v1.worker_service_pb2 import Finished, SessionRequest, Started

from services.trainer.run.kube.access import JobEvent

PREFIX = "graft.dev"
_MOST_EVENTS = 50
_MOST_TEXT = 2000


class JobStatus:
    """The annotations to be, and the events that are not written yet. Knows no network."""

    def __init__(self) -> None:
        self.annotations: dict[str, str] = {}
        self.events: list[JobEvent] = []
        self._say(state="starting")

    def take(self, report: SessionRequest) -> bool:
        """Takes a report; whether it is worth to be told at once."""
        match report.WhichOneof("report"):
            case "metrics":
                self._metrics(report.metrics)
                return False
            case "checkpoint_step":
                self._say(checkpoint_step=str(report.checkpoint_step))
                return False
            case "log":
                self._say(log=report.log)
                return False
            case "stage":
                stage = stages_pb2.JobStage.Name(report.stage).removeprefix("JOB_STAGE_")
                self._say(stage=stage.lower())
                return False
            case "waiting":
                self._say(message=report.waiting)
            case "started":
                self._started(report.started)
            case "finalizing":
                self._say(state="finalizing", eta="")
                self._event("Finalizing", "Done; the result is saved, uploaded and registered")
            case "finished":
                self._finished(report.finished)
        return True

    def _started(self, started: Started) -> None:
        self._say(state="training", step=f"{started.step}/{started.total_steps}")
        numbers = f"{started.trainable_parameters:,} of {started.total_parameters:,} numbers"
        how = f"goes on from the checkpoint of step {started.step}" if started.step else "begins"
        text = f"Training {how} and has {started.total_steps} steps; {numbers} are trained"
        self._event("Resumed" if started.step else "Started", text)

    def _metrics(self, metrics: common.TrainingMetrics) -> None:
        ends = datetime.now(UTC) + timedelta(seconds=metrics.remaining_s)
        self._say(
            step=f"{metrics.step}/{metrics.total_steps}",
            epoch=f"{metrics.epoch:.2f}",
            loss=f"{metrics.loss:.4f}",
            tokens_per_second=f"{metrics.tokens_per_second:.0f}",
            eta=ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        if metrics.HasField("eval_loss"):
            self._say(eval_loss=f"{metrics.eval_loss:.4f}")

    def _finished(self, finished: Finished) -> None:
        self._say(eta="", message=finished.message)
        if finished.preempted:
            self._say(state="preempted")
            self._event("Preempted", f"{finished.message}; goes on from its last checkpoint")
        elif finished.paused:
            self._say(state="paused")
            self._event("Paused", finished.message, warning=True)
        elif finished.cancelled:
            self._say(state="cancelled")
            self._event("Cancelled", finished.message)
        elif finished.failure_cause:
            cause = cause_word(finished.failure_cause)
            self._say(state="failed", failure_cause=cause)
            self._event("Failed", f"{cause}: {finished.message}", warning=True)
        else:
            self._say(state="succeeded", version=finished.version)
            done = f"Registered {finished.version}" if finished.version else finished.message
            self._event("Registered" if finished.version else "Done", done)

    def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(JobEvent(reason, message, datetime.now(UTC), warning))
        del self.events[:-_MOST_EVENTS]

    def _say(self, **values: str) -> None:
        """Sets annotations; an empty text takes one away when it is written."""
        for name, value in values.items():
            self.annotations[f"{PREFIX}/{name.replace('_', '-')}"] = value[:_MOST_TEXT]


def cause_word(cause: common.FailureCause.ValueType) -> str:
    """A failure's cause as people write it: "bad-data"."""
    name = common.FailureCause.Name(cause).removeprefix("FAILURE_CAUSE_")
    return name.lower().replace("_", "-")
