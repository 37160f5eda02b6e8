"""Domain values as the contract's messages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from graft.common.v1 import common_pb2
from graft.digests import digest_message
from graft.names import version_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.rollout_messages import report_message, rollout_message

from services.registry import domain
from services.registry.watch import Bookmark

_KINDS: Mapping[domain.Kind, pb.VersionKind.ValueType] = {
    domain.Kind.UNSPECIFIED: pb.VERSION_KIND_UNSPECIFIED,
    domain.Kind.ADAPTER: pb.VERSION_KIND_ADAPTER,
    domain.Kind.BASE: pb.VERSION_KIND_BASE,
}
_COMPARISONS: Mapping[domain.Comparison, pb.Comparison.ValueType] = {
    domain.Comparison.LESS: pb.COMPARISON_LESS,
    domain.Comparison.AT_MOST: pb.COMPARISON_AT_MOST,
    domain.Comparison.AT_LEAST: pb.COMPARISON_AT_LEAST,
    domain.Comparison.MORE: pb.COMPARISON_MORE,
}
_ACTIONS: Mapping[domain.Action, pb.ChangeType.ValueType] = {
    domain.Action.CREATED: pb.CHANGE_TYPE_CREATED,
    domain.Action.UPDATED: pb.CHANGE_TYPE_UPDATED,
    domain.Action.DELETED: pb.CHANGE_TYPE_DELETED,
    domain.Action.UNDELETED: pb.CHANGE_TYPE_UNDELETED,
    domain.Action.PURGED: pb.CHANGE_TYPE_PURGED,
}


def timestamp(time: datetime) -> Timestamp:
    """A time as protobuf's."""
    result = Timestamp()
    result.FromDatetime(time)
    return result


def optional_time(time: datetime | None) -> Timestamp | None:
    """A time as protobuf's, where there is one."""
    return None if time is None else timestamp(time)


def adapter_message(adapter: domain.Adapter) -> pb.Adapter:
    """An adapter as the contract has it."""
    return pb.Adapter(
        name=adapter.name,
        base=adapter.base,
        description=adapter.description,
        labels=adapter.labels,
        latest_version=adapter.latest_version,
        create_time=timestamp(adapter.create_time),
        etag=adapter.life.etag,
        actor=adapter.life.actor,
        delete_time=optional_time(adapter.life.delete_time),
        expire_time=optional_time(adapter.life.expire_time),
        purge_time=optional_time(adapter.life.purge_time),
    )


def base_message(base: domain.Base) -> pb.Base:
    """A base as the contract has it."""
    return pb.Base(
        name=base.name,
        source=base.source,
        fingerprint=fingerprint_message(base.fingerprint),
        config_json=base.config_json,
        modules=[
            pb.BaseModule(path=one.path, in_features=one.in_features, out_features=one.out_features)
            for one in base.modules
        ],
        create_time=timestamp(base.create_time),
        description=base.description,
        labels=base.labels,
        latest_version=base.latest_version,
        etag=base.life.etag,
        actor=base.life.actor,
        delete_time=optional_time(base.life.delete_time),
        expire_time=optional_time(base.life.expire_time),
        purge_time=optional_time(base.life.purge_time),
    )


def fingerprint_message(fingerprint: domain.Fingerprint) -> pb.BaseFingerprint:
    """A fingerprint as the contract has it."""
    return pb.BaseFingerprint(
        digest=fingerprint.digest,
        config_digest=fingerprint.config_digest,
        tokenizer_digest=fingerprint.tokenizer_digest,
        weights_digest=fingerprint.weights_digest,
    )


def manifest_message(manifest: domain.Manifest) -> pb.Manifest:
    """A manifest as the contract has it; its digest is taken of this."""
    origin = manifest.lineage
    return pb.Manifest(
        base=manifest.base,
        base_fingerprint=manifest.base_fingerprint,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        alpha=manifest.alpha,
        target_modules=manifest.target_modules,
        files=[
            common_pb2.File(path=one.path, digest=one.digest, size_bytes=one.size_bytes)
            for one in manifest.files
        ],
        lineage=pb.Lineage(
            job=origin.job,
            attempt=origin.attempt,
            spec_json=origin.spec_json,
            data_digest=origin.data_digest,
            data_rows=origin.data_rows,
            seed=origin.seed,
            library_versions=origin.library_versions,
            metrics=origin.metrics,
            parent_versions=origin.parent_versions,
            sources=origin.sources,
        ),
        kind=_KINDS[manifest.kind],
        method=manifest.method,
        quantization=manifest.quantization,
        fingerprint=(
            None if manifest.fingerprint is None else fingerprint_message(manifest.fingerprint)
        ),
    )


def manifest_digest(manifest: domain.Manifest) -> str:
    """The digest that names a version's content."""
    return digest_message(manifest_message(manifest))


def version_message(version: domain.Version) -> pb.Version:
    """A version as the contract has it."""
    return pb.Version(
        name=version_name(version.parent, version.number),
        number=version.number,
        digest=version.digest,
        manifest=manifest_message(version.manifest),
        admission=pb.AdmissionReport(
            checks=[
                pb.AdmissionCheck(name=one.name, detail=one.detail) for one in version.report.checks
            ],
            tensors=version.report.tensors,
            parameters=version.report.parameters,
        ),
        create_time=timestamp(version.create_time),
        description=version.description,
        labels=version.labels,
        signatures=[
            pb.Signature(
                key_id=one.key_id,
                envelope_json=one.envelope_json,
                actor=one.actor,
                create_time=timestamp(one.create_time),
            )
            for one in version.signatures
        ],
        etag=version.life.etag,
        actor=version.life.actor,
        delete_time=optional_time(version.life.delete_time),
        expire_time=optional_time(version.life.expire_time),
        purge_time=optional_time(version.life.purge_time),
    )


def alias_message(alias: domain.Alias) -> pb.Alias:
    """An alias as the contract has it."""
    before = alias.previous_version
    return pb.Alias(
        name=alias.name,
        version=version_name(alias.parent, alias.version),
        version_digest=alias.version_digest,
        previous_version=version_name(alias.parent, before) if before else "",
        etag=alias.etag,
        actor=alias.actor,
        reason=alias.reason,
        update_time=timestamp(alias.update_time),
        revision=alias.revision,
        canaries=[
            pb.Canary(
                version=version_name(alias.parent, one.version),
                version_digest=one.version_digest,
                weight_percent=one.weight_percent,
            )
            for one in alias.canaries
        ],
        gate_report=None if alias.gate_report is None else gate_report_message(alias),
        deleted=alias.deleted,
        rollout=None if alias.rollout is None else rollout_message(alias.rollout, alias.parent),
        rollout_report=None
        if alias.rollout_report is None
        else report_message(alias.rollout_report, alias.parent),
    )


def gate_report_message(alias: domain.Alias) -> pb.GateReport:
    """What a gate found at an alias' last move."""
    report = alias.gate_report
    assert report is not None, "asked for where there is one"
    return pb.GateReport(
        passed=report.passed,
        results=[
            pb.ConditionResult(
                version=version_name(alias.parent, one.version),
                condition=one.condition,
                passed=one.passed,
                detail=one.detail,
                actual=one.actual,
                bound=one.bound,
            )
            for one in report.results
        ],
    )


def policy_message(policy: domain.AliasPolicy) -> pb.AliasPolicy:
    """A policy as the contract has it."""
    return pb.AliasPolicy(
        name=policy.name,
        protected=policy.protected,
        movers=policy.movers,
        conditions=map(condition_message, policy.conditions),
        etag=policy.etag,
        actor=policy.actor,
        update_time=timestamp(policy.update_time),
    )


def approval_message(approval: domain.Approval) -> pb.Approval:
    """An approval as the contract has it."""
    return pb.Approval(
        version=version_name(approval.parent, approval.number),
        alias=approval.alias,
        actor=approval.actor,
        reason=approval.reason,
        create_time=timestamp(approval.create_time),
    )


def condition_message(condition: domain.Condition) -> pb.Condition:
    """A gate's condition as the contract has it."""
    match condition:
        case domain.MetricCondition():
            metric = pb.MetricCondition(
                metric=condition.metric,
                comparison=_COMPARISONS[condition.comparison],
                margin=condition.margin,
            )
            if condition.value is None:
                metric.alias = condition.alias
            else:
                metric.value = condition.value
            return pb.Condition(metric=metric)
        case domain.ApprovalCondition():
            return pb.Condition(
                approval=pb.ApprovalCondition(count=condition.count, actors=condition.actors)
            )
        case domain.LabelCondition():
            return pb.Condition(label=pb.LabelCondition(key=condition.key, value=condition.value))


def watch_message(news: domain.Event | Bookmark) -> pb.WatchResponse:
    """An event or a bookmark as the contract has it."""
    answer = pb.WatchResponse(revision=news.revision, time=timestamp(news.time))
    if isinstance(news, domain.Event):
        answer.change_type = _ACTIONS[news.action]
        match news.resource:
            case domain.Adapter():
                answer.adapter.CopyFrom(adapter_message(news.resource))
            case domain.Base():
                answer.base.CopyFrom(base_message(news.resource))
            case domain.Version():
                answer.version.CopyFrom(version_message(news.resource))
            case domain.Alias():
                answer.alias.CopyFrom(alias_message(news.resource))
            case domain.AliasPolicy():
                answer.policy.CopyFrom(policy_message(news.resource))
    return answer
