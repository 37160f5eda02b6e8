"""The only place where the trainer's protobuf messages and its own values meet."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from graft.common.v1 import common_pb2
from graft.digests import canonical_json, digest_bytes
from graft.errors import GraftError, Reason
from graft.names import job_name, parse_name
from graft.trainer.v1 import job_spec_pb2, plan_pb2, preflight_pb2, worker_service_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer import session
from services.trainer.fields import invalid_field
from services.trainer.jobs import (
    CheckpointSaved,
    Event,
    Finalizing,
    Finished,
    Hello,
    Job,
    LogLine,
    Metrics,
    Report,
    Started,
    StateChanged,
)
from services.trainer.lifecycle import now
from services.trainer.plan.accelerators import find_accelerator
from services.trainer.spec import JobSpec, parse_spec
from services.trainer.stall import Beat
from services.trainer.states import FailureCause, JobState
from services.trainer.store.base import RequestKey

_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1000
_USUAL_EXAMPLES, _MOST_EXAMPLES = 3, 50
# Letters and digits that nobody takes for one another.
_SUFFIX_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_SUFFIX_LENGTH = 6
_METRICS_FIELDS = (
    "step",
    "total_steps",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "remaining_s",
)


def new_job(request: pb.CreateJobRequest, max_nodes: int) -> tuple[Job, RequestKey | None]:
    """The job that a request asks for, under a name that is still to be taken.

    Args:
        max_nodes: machines that this trainer's launcher can use for a job.

    Raises:
        GraftError: INVALID_NAME, INVALID_SPEC.
    """
    namespace = parent_namespace(request.parent)
    spec = parse_spec(request.spec)
    if spec.resources.nodes > max_nodes:
        raise invalid_field(
            "resources.nodes",
            spec.resources.nodes,
            f"at most {max_nodes}, with the launcher that this trainer has",
            "Leave it out, or give the job to a trainer with GRAFT_TRAINER_LAUNCHER=kubernetes.",
        )
    text = canonical_json(request.spec)
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_LENGTH))
    job = Job(
        name=job_name(namespace, f"{(spec.output.adapter or spec.output.base)[:50]}-{suffix}"),
        namespace=namespace,
        spec_json=text.decode(),
        slots=spec.resources.slots,
        cpu_threads=spec.resources.cpu_threads,
        max_restarts=spec.resources.max_restarts,
        create_time=now(),
    )
    if not request.request_id:
        return job, None
    return job, RequestKey(namespace, request.request_id, digest_bytes(text))


def spec_from_json(text: str) -> JobSpec:
    """A stored spec, with its defaults. Raises GraftError INVALID_SPEC."""
    return parse_spec(json_format.Parse(text, job_spec_pb2.JobSpec()))


def survey_request(request: preflight_pb2.ValidateJobRequest) -> tuple[str, int]:
    """The spec, checked, and how many examples are shown.

    Raises:
        GraftError: INVALID_NAME, INVALID_SPEC, INVALID_REQUEST.
    """
    parent_namespace(request.parent)
    parse_spec(request.spec)
    if not 0 <= request.examples <= _MOST_EXAMPLES:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"examples is {request.examples}",
            next_step=f"Ask for 1 to {_MOST_EXAMPLES}.",
        )
    return canonical_json(request.spec).decode(), request.examples or _USUAL_EXAMPLES


def survey_update(update: Mapping[str, Any]) -> preflight_pb2.ValidateJobResponse:
    """What a survey's process says."""
    field = "report" if "result" in update else "progress"
    value = update.get("result", update.get("progress"))
    return json_format.ParseDict({field: value}, preflight_pb2.ValidateJobResponse())


def plan_request(
    request: plan_pb2.PlanJobRequest | plan_pb2.RecommendJobRequest,
) -> tuple[str, str]:
    """The spec, checked, and the accelerator that it is planned for; "" for the trainer's own hardware.

    Raises:
        GraftError: INVALID_NAME, INVALID_SPEC; INVALID_REQUEST for an accelerator that is not in the table.
    """
    parent_namespace(request.parent)
    parse_spec(request.spec)
    accelerator = request.accelerator.strip()
    if accelerator.lower() in ("", "cpu"):
        return canonical_json(request.spec).decode(), accelerator.lower()
    return canonical_json(request.spec).decode(), find_accelerator(accelerator).name


def plan_update(update: Mapping[str, Any]) -> plan_pb2.PlanJobResponse:
    """What a planner's process says of a plan."""
    field = "plan" if "result" in update else "progress"
    value = update.get("result", update.get("progress"))
    return json_format.ParseDict({field: value}, plan_pb2.PlanJobResponse())


def recommend_update(update: Mapping[str, Any]) -> plan_pb2.RecommendJobResponse:
    """What a planner's process says of a recommendation."""
    field = "recommendation" if "result" in update else "progress"
    value = update.get("result", update.get("progress"))
    return json_format.ParseDict({field: value}, plan_pb2.RecommendJobResponse())


def parent_namespace(parent: str) -> str:
    """ "default" of "namespaces/default". Raises GraftError INVALID_NAME."""
    return parse_name(parent, "namespaces/{namespace}")["namespace"]


def checked_job_name(name: str) -> str:
    """The name, if it can be a job's. Raises GraftError INVALID_NAME."""
    parse_name(name, "namespaces/{namespace}/jobs/{job}")
    return name


def page_size(asked: int) -> int:
    """How many jobs a page holds. Raises GraftError INVALID_REQUEST for a negative number."""
    if asked < 0:
        raise GraftError(
            Reason.INVALID_REQUEST, f"page_size is {asked}", next_step="Ask for 0 to 1000."
        )
    return min(asked or _DEFAULT_PAGE, _LARGEST_PAGE)


def page_token(namespace: str, last: Job) -> str:
    """The token of the page after a job."""
    return base64.urlsafe_b64encode(f"{namespace} {last.number}".encode()).decode()


def page_start(token: str, namespace: str) -> int | None:
    """The number that the page's jobs are below. Raises GraftError INVALID_PAGE_TOKEN."""
    if not token:
        return None
    try:
        text = base64.urlsafe_b64decode(token.encode()).decode()
        of_namespace, _, number = text.partition(" ")
        if of_namespace == namespace:
            return int(number)
    except (ValueError, binascii.Error):
        pass
    raise GraftError(
        Reason.INVALID_PAGE_TOKEN,
        "The page token is not one of this list",
        next_step="Start again without a page token.",
    )


def job(job: Job) -> pb.Job:
    """A job as a message."""
    message = pb.Job(
        name=job.name,
        spec=json_format.Parse(job.spec_json, job_spec_pb2.JobSpec()),
        state=_state(job.state),
        failure_cause=_cause(job.cause),
        message=job.message,
        attempt=job.attempt,
        version=job.version,
        create_time=_timestamp(job.create_time),
        start_time=_timestamp(job.start_time),
        end_time=_timestamp(job.end_time),
        cancel_requested=job.cancel_requested,
    )
    if job.metrics is not None:
        message.metrics.CopyFrom(_metrics(job.metrics))
    return message


def event(event: Event) -> pb.JobEvent:
    """An event as a message."""
    message = pb.JobEvent(
        sequence=event.sequence, time=_timestamp(event.time), attempt=event.attempt
    )
    match event.body:
        case StateChanged() as change:
            message.state_change.CopyFrom(
                pb.StateChange(
                    from_state=_state(change.before),
                    to_state=_state(change.after),
                    message=change.message,
                    failure_cause=_cause(change.cause),
                    version=change.version,
                )
            )
        case Metrics() as metrics:
            message.metrics.CopyFrom(_metrics(metrics))
        case LogLine(text):
            message.log = text
        case CheckpointSaved(step):
            message.checkpoint_step = step
    return message


def hello(request: worker_service_pb2.SessionRequest) -> Hello:
    """The first message of a worker's stream. Raises GraftError INVALID_REQUEST for another one."""
    if not request.HasField("hello"):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"A session begins with hello, not with {request.WhichOneof('report') or 'nothing'}",
            next_step="Send hello with job, attempt and token first.",
        )
    return Hello(request.hello.job, request.hello.attempt, request.hello.token)


def report(request: worker_service_pb2.SessionRequest) -> tuple[int, Report | Beat]:
    """A worker's report with its number; a mere sign of life has none."""
    return request.report_number, _report(request)


def _report(request: worker_service_pb2.SessionRequest) -> Report | Beat:
    match request.WhichOneof("report"):
        case "started":
            given = request.started
            return Started(
                given.step, given.total_steps, given.trainable_parameters, given.total_parameters
            )
        case "metrics":
            return _measured(request.metrics)
        case "log":
            return LogLine(request.log)
        case "checkpoint_step":
            return CheckpointSaved(request.checkpoint_step)
        case "finalizing":
            return Finalizing()
        case "finished":
            return _finished(request.finished)
        case _:
            beat = request.heartbeat
            return Beat(beat.step, beat.quiet_s, beat.longest_step_s)


def answer(answer: session.Answer) -> worker_service_pb2.SessionResponse:
    """What a worker is told."""
    match answer:
        case session.Acknowledged(number):
            return worker_service_pb2.SessionResponse(acknowledged_report_number=number)
        case session.Cancel(reason):
            return worker_service_pb2.SessionResponse(
                cancel=worker_service_pb2.Cancel(reason=reason)
            )
        case session.Preempt(reason):
            return worker_service_pb2.SessionResponse(
                preempt=worker_service_pb2.Preempt(reason=reason)
            )
        case session.EndStalled(reason):
            return worker_service_pb2.SessionResponse(
                end_stalled=worker_service_pb2.EndStalled(reason=reason)
            )


def left_report(text: str) -> Finished | None:
    """The last report of a worker as it left it where it ran, in protobuf JSON; None where it is none."""
    try:
        return _finished(json_format.Parse(text, worker_service_pb2.Finished()))
    except (json_format.ParseError, ValueError):
        return None


def _finished(given: worker_service_pb2.Finished) -> Finished:
    cause = None
    if given.failure_cause:
        name = common_pb2.FailureCause.Name(given.failure_cause)
        cause = FailureCause(name.removeprefix("FAILURE_CAUSE_"))
    return Finished(given.version, cause, given.cancelled, given.preempted, given.message)


def _measured(given: common_pb2.TrainingMetrics) -> Metrics:
    values = {field: getattr(given, field) for field in _METRICS_FIELDS}
    eval_loss = given.eval_loss if given.HasField("eval_loss") else None
    return Metrics(**values, eval_loss=eval_loss, figures=dict(given.figures))


def _metrics(metrics: Metrics) -> common_pb2.TrainingMetrics:
    values = {field: getattr(metrics, field) for field in _METRICS_FIELDS}
    return common_pb2.TrainingMetrics(
        **values, eval_loss=metrics.eval_loss, figures=dict(metrics.figures)
    )


def _state(state: JobState) -> pb.JobState.ValueType:
    return pb.JobState.Value(f"JOB_STATE_{state.value}")


def _cause(cause: FailureCause | None) -> common_pb2.FailureCause.ValueType:
    if cause is None:
        return common_pb2.FAILURE_CAUSE_UNSPECIFIED
    return common_pb2.FailureCause.Value(f"FAILURE_CAUSE_{cause.value}")


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
