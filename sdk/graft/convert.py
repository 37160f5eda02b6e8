"""Where protobuf and the client's results meet, for reading; specs.py has the way for job specs."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from graft import results
from graft.attestation import Attestation, AttestationSignature
from graft.common.v1 import common_pb2
from graft.inference.v1 import attestation_pb2, rollout_pb2
from graft.inference.v1 import inference_service_pb2 as inference_pb2
from graft.registry.v1 import registry_service_pb2 as registry_pb2
from graft.rollout_messages import report_of, rollout_of
from graft.trainer.v1 import stages_pb2
from graft.trainer.v1 import trainer_service_pb2 as trainer_pb2

_PARTS = {rollout_pb2.ROLLOUT_PART_STABLE: "stable", rollout_pb2.ROLLOUT_PART_CANARY: "canary"}


def metrics(message: common_pb2.TrainingMetrics) -> results.Metrics:
    """Figures of a training run."""
    return results.Metrics(
        step=message.step,
        total_steps=message.total_steps,
        epoch=message.epoch,
        loss=message.loss,
        learning_rate=message.learning_rate,
        grad_norm=message.grad_norm,
        tokens=message.tokens,
        tokens_per_second=message.tokens_per_second,
        remaining_s=message.remaining_s,
        eval_loss=message.eval_loss if message.HasField("eval_loss") else None,
        figures=dict(message.figures),
    )


# Of each kind of job the field that its spec is in.
_JOB_SPECS = {"train": "spec", "merge": "merge", "evaluate": "evaluation"}


def job(message: trainer_pb2.Job) -> results.Job:
    """A job."""
    kind = _job_kind(message)
    return results.Job(
        name=message.name,
        state=_job_state(message.state) or results.JobState.PENDING,
        spec=MessageToDict(getattr(message, _JOB_SPECS[kind]), preserving_proto_field_name=True),
        failure_cause=_failure_cause(message.failure_cause),
        message=message.message,
        attempt=message.attempt,
        metrics=metrics(message.metrics) if message.HasField("metrics") else None,
        version=message.version or None,
        create_time=optional_time(message.create_time),
        start_time=optional_time(message.start_time),
        end_time=optional_time(message.end_time),
        cancel_requested=message.cancel_requested,
        kind=kind,
        stage=_job_stage(message.stage),
        pause_requested=message.pause_requested,
        checkpoint_step=message.checkpoint_step,
    )


def _job_kind(message: trainer_pb2.Job) -> str:
    if message.HasField("merge"):
        return "merge"
    return "evaluate" if message.HasField("evaluation") else "train"


def job_event(message: trainer_pb2.JobEvent) -> results.JobEvent:
    """An event of a job."""
    kind = message.WhichOneof("event")
    return results.JobEvent(
        sequence=message.sequence,
        time=optional_time(message.time),
        attempt=message.attempt,
        state_change=_state_change(message.state_change) if kind == "state_change" else None,
        metrics=metrics(message.metrics) if kind == "metrics" else None,
        log=message.log if kind == "log" else None,
        checkpoint_step=message.checkpoint_step if kind == "checkpoint_step" else None,
        stage=_job_stage(message.stage) if kind == "stage" else None,
    )


def _state_change(message: trainer_pb2.StateChange) -> results.StateChange:
    return results.StateChange(
        from_state=_job_state(message.from_state),
        to_state=_job_state(message.to_state) or results.JobState.PENDING,
        message=message.message,
        failure_cause=_failure_cause(message.failure_cause),
        version=message.version or None,
    )


def adapter(message: registry_pb2.Adapter) -> results.Adapter:
    """An adapter."""
    return results.Adapter(
        name=message.name,
        base=message.base,
        description=message.description,
        labels=dict(message.labels),
        latest_version=message.latest_version,
        create_time=optional_time(message.create_time),
        etag=message.etag,
        deleted=_deleted(message),
    )


def base(message: registry_pb2.Base) -> results.Base:
    """A base."""
    return results.Base(
        name=message.name,
        source=message.source,
        fingerprint=message.fingerprint.digest,
        modules=len(message.modules),
        create_time=optional_time(message.create_time),
        description=message.description,
        labels=dict(message.labels),
        latest_version=message.latest_version,
        etag=message.etag,
        deleted=_deleted(message),
    )


def version(message: registry_pb2.Version) -> results.Version:
    """A version of an adapter."""
    manifest = message.manifest
    return results.Version(
        name=message.name,
        number=message.number,
        digest=message.digest,
        base=manifest.base,
        base_fingerprint=manifest.base_fingerprint,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        alpha=manifest.alpha,
        target_modules=tuple(manifest.target_modules),
        files=tuple(
            results.VersionFile(file.path, file.digest, file.size_bytes) for file in manifest.files
        ),
        lineage=_lineage(manifest.lineage),
        checks=tuple(results.Check(one.name, one.detail) for one in message.admission.checks),
        parameters=message.admission.parameters,
        create_time=optional_time(message.create_time),
        signatures=tuple(
            results.Signature(
                one.key_id, one.envelope_json, one.actor, optional_time(one.create_time)
            )
            for one in message.signatures
        ),
        method=manifest.method,
        quantization=manifest.quantization,
        fingerprint=manifest.fingerprint.digest,
        description=message.description,
        labels=dict(message.labels),
        etag=message.etag,
        deleted=_deleted(message),
    )


def _deleted(message: registry_pb2.Adapter | registry_pb2.Base | registry_pb2.Version) -> bool:
    return message.HasField("delete_time") or message.HasField("purge_time")


def _lineage(message: registry_pb2.Lineage) -> results.Lineage:
    spec: dict[str, Any] = json.loads(message.spec_json) if message.spec_json else {}
    return results.Lineage(
        job=message.job or None,
        attempt=message.attempt,
        spec=spec,
        data_digest=message.data_digest,
        data_rows=message.data_rows,
        seed=message.seed,
        library_versions=dict(message.library_versions),
        metrics=dict(message.metrics),
        parent_versions=tuple(message.parent_versions),
        sources=tuple(message.sources),
    )


def alias(message: registry_pb2.Alias) -> results.Alias:
    """An alias."""
    return results.Alias(
        name=message.name,
        version=message.version,
        version_digest=message.version_digest,
        previous_version=message.previous_version or None,
        etag=message.etag,
        actor=message.actor,
        reason=message.reason,
        update_time=optional_time(message.update_time),
        revision=message.revision,
        canaries={one.version: one.weight_percent for one in message.canaries},
        gate_report=[
            results.Check(one.condition, one.detail) for one in message.gate_report.results
        ],
        deleted=message.deleted,
        rollout=rollout_of(message.rollout) if message.HasField("rollout") else None,
        rollout_report=report_of(message.rollout_report)
        if message.HasField("rollout_report")
        else None,
    )


def change(message: registry_pb2.WatchResponse) -> results.Change | None:
    """A change; None for a bookmark."""
    kind = message.WhichOneof("change")
    if kind is None:
        return None
    return results.Change(
        revision=message.revision,
        time=optional_time(message.time),
        adapter=adapter(message.adapter) if kind == "adapter" else None,
        base=base(message.base) if kind == "base" else None,
        version=version(message.version) if kind == "version" else None,
        alias=alias(message.alias) if kind == "alias" else None,
        policy=message.policy.name if kind == "policy" else None,
        action=_action(message.change_type),
    )


def _action(value: registry_pb2.ChangeType.ValueType) -> results.ChangeAction:
    word = registry_pb2.ChangeType.Name(value).removeprefix("CHANGE_TYPE_").lower()
    # A registry of before they were told.
    return results.ChangeAction(word) if value else results.ChangeAction.CREATED


def answer(message: inference_pb2.GenerateResponse) -> results.Answer:
    """An answer, or what is new of it."""
    usage = message.usage
    return results.Answer(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(
            results.TokenLogprobs(_logprob(one.token), tuple(map(_logprob, one.top)))
            for one in message.logprobs
        ),
        finish_reason=_finish_reason(message.finish_reason),
        provenance=_provenance(message.provenance) if message.HasField("provenance") else None,
        usage=results.Usage(usage.prompt_tokens, usage.completion_tokens)
        if message.HasField("usage")
        else None,
        index=message.index,
        tool_calls=tuple(
            results.ToolCall(call.index, call.id, call.name, call.arguments_json)
            for call in message.tool_calls
        ),
        others=tuple(map(answer, message.others)),
        prompt_logprobs=tuple(
            results.TokenLogprobs(_logprob(one.token), tuple(map(_logprob, one.top)))
            for one in message.prompt_logprobs
        ),
        attestation=_attestation(message.attestation) if message.HasField("attestation") else None,
    )


def _attestation(message: attestation_pb2.Attestation) -> Attestation:
    return Attestation(
        message.statement_json,
        tuple(
            AttestationSignature(one.key_id, base64.b64encode(one.signature).decode())
            for one in message.signatures
        ),
    )


def embeddings(message: inference_pb2.EmbedResponse) -> results.Embeddings:
    """Vectors with what made them."""
    return results.Embeddings(
        vectors=tuple(tuple(one.values) for one in message.embeddings),
        prompt_tokens=tuple(one.prompt_tokens for one in message.embeddings),
        provenance=_provenance(message.provenance),
    )


def token_count(message: inference_pb2.CountTokensResponse) -> results.TokenCount:
    """A count."""
    return results.TokenCount(
        message.tokens, message.max_context_tokens, _provenance(message.provenance)
    )


def _provenance(message: inference_pb2.Provenance) -> results.Provenance:
    return results.Provenance(
        message.version or None,
        message.version_digest or None,
        message.base,
        message.base_fingerprint,
        message.engine,
        blend=message.blend,
        parts=tuple(
            results.BlendPart(one.version, one.version_digest, one.weight) for one in message.parts
        ),
        rollout_part=_PARTS.get(message.rollout_part),
    )


def _logprob(message: inference_pb2.TokenLogprob) -> results.TokenLogprob:
    return results.TokenLogprob(message.token_id, message.logprob, message.text)


def model(message: inference_pb2.Model) -> results.Model:
    """A name that a request may use."""
    return results.Model(
        message.reference,
        message.version or None,
        message.version_digest or None,
        message.resident,
        message.engine,
        blend=message.blend,
        base=message.base,
        base_version=message.base_version or None,
    )


def residency(message: inference_pb2.Residency) -> results.Residency:
    """What an engine holds."""
    return results.Residency(
        base=message.base,
        base_fingerprint=message.base_fingerprint,
        adapters=tuple(
            results.ResidentAdapter(
                version=one.version,
                version_digest=one.version_digest,
                state=_residency_state(one.state),
                in_flight=one.in_flight,
                size_bytes=one.size_bytes,
                message=one.message,
                engine=one.engine,
                blend=one.blend,
            )
            for one in message.adapters
        ),
        revision=message.revision,
        base_version=message.base_version or None,
        base_quantization=message.base_quantization,
        base_switch=message.base_switch.to_base,
        slot_room=message.slot_room,
        slot_room_taken=message.slot_room_taken,
        page_rank=message.page_rank,
    )


def optional_time(message: Timestamp) -> datetime | None:
    """A time; None where there is none."""
    return message.ToDatetime(UTC) if message.seconds or message.nanos else None


def _job_state(value: trainer_pb2.JobState.ValueType) -> results.JobState | None:
    if not value:
        return None
    return results.JobState(trainer_pb2.JobState.Name(value).removeprefix("JOB_STATE_"))


def _job_stage(value: stages_pb2.JobStage.ValueType) -> results.JobStage | None:
    if not value:
        return None
    return results.JobStage(stages_pb2.JobStage.Name(value).removeprefix("JOB_STAGE_"))


def _failure_cause(value: common_pb2.FailureCause.ValueType) -> results.FailureCause | None:
    if not value:
        return None
    return results.FailureCause(common_pb2.FailureCause.Name(value).removeprefix("FAILURE_CAUSE_"))


def _finish_reason(value: inference_pb2.FinishReason.ValueType) -> results.FinishReason | None:
    if not value:
        return None
    return results.FinishReason(
        inference_pb2.FinishReason.Name(value).removeprefix("FINISH_REASON_")
    )


def _residency_state(value: inference_pb2.ResidencyState.ValueType) -> results.ResidencyState:
    name = inference_pb2.ResidencyState.Name(value).removeprefix("RESIDENCY_STATE_")
    return results.ResidencyState(name) if value else results.ResidencyState.LOADING
