"""Rollouts: a new version gets a growing part of an alias' requests, and is taken back when it is bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft import convert
from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.inference.v1 import rollout_pb2 as inference_pb2
from graft.names import DEFAULT_ALIAS, adapter_name, alias_name, version_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import Alias
from graft.rollout_messages import number_of, rollout_message
from graft.rollout_policy import Rollout, RolloutLimits, Shadow

_REGISTRY, _INFERENCE = "the registry", "inference"


@dataclass(frozen=True, slots=True)
class PartFigures:
    """How a version fared on one endpoint within the window; see PartFigures of the contract."""

    version: str
    requests: int
    error_rate: float
    refusal_rate: float
    babble_rate: float
    first_token_s: float | None
    token_s: float | None
    mean_tokens: float | None


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """A canary on one endpoint: "loading", "serving", "failed" or "taken_out", and why."""

    weight_percent: float
    state: str
    message: str
    figures: PartFigures


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """What came of the copies; see ShadowFigures of the contract."""

    version: str
    compared: int
    equal: int
    agreement: float
    length_ratio: float
    time_ratio: float
    failed: int
    dropped: int


@dataclass(frozen=True, slots=True)
class RolloutHere:
    """One alias on one endpoint."""

    alias: str
    stable: PartFigures
    canaries: Sequence[CanaryStatus]
    shadow: ShadowFigures | None


class Rollouts:
    """The rollouts of a namespace. A name is short ("bot") or a full resource name."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._namespace = connection, namespace

    def _name(self, adapter: str, alias: str) -> str:
        full = adapter if "/" in adapter else adapter_name(self._namespace, adapter)
        return alias_name(full, alias)

    async def status(self, adapter: str, *, alias: str = DEFAULT_ALIAS) -> Alias:
        """The alias as the registry has it: its canaries, their rollout, and why some were taken out.

        Raises:
            GraftError: ALIAS_NOT_FOUND.
        """
        return convert.alias(await self._get(self._name(adapter, alias)))

    async def here(self) -> Sequence[RolloutHere]:
        """How rollouts fare on the endpoint that answers."""
        stub, request = self._connection.inference, inference_pb2.ListRolloutsRequest()
        answer = await self._connection.call(stub.ListRollouts, request, _INFERENCE)
        return [_here(one) for one in answer.rollouts]

    async def start(
        self,
        adapter: str,
        version: int,
        *,
        limits: RolloutLimits | None = None,
        percent: float = 5.0,
        steps: Sequence[float] = (),
        alias: str = DEFAULT_ALIAS,
        reason: str = "",
    ) -> Alias:
        """Gives a version a part of an alias' requests.

        Args:
            adapter: the adapter.
            version: number of the new version.
            limits: what takes it back by itself; None judges nothing.
            percent: its part, where there are no steps.
            steps: its parts one after the other, while it keeps within the limits; 100 makes it the
                alias' version.
            alias: which alias.
            reason: why, for its history.

        Raises:
            GraftError: ALIAS_NOT_FOUND, ALIAS_MOVED, INVALID_REQUEST naming the field, IN_USE when
                another rollout is under way, and all of Adapters.promote.
        """
        now = await self._get(self._name(adapter, alias))
        others = [one.version for one in now.canaries if number_of(one.version) != version]
        if others:
            raise GraftError(
                Reason.IN_USE,
                f"{now.name} rolls out {', '.join(others)} already",
                next_step="End that first with `graft rollout abort`.",
                resource=now.name,
            )
        kept = convert.alias(now).rollout or Rollout()
        rollout = replace(
            kept, limits=limits or kept.limits, steps_percent=tuple(steps), paused=False
        )
        parent = now.name.rsplit("/", 2)[0]
        part = pb.Canary(
            version=version_name(parent, version), weight_percent=steps[0] if steps else percent
        )
        return await self._set(now, [part], rollout, reason)

    async def shadow(
        self,
        adapter: str,
        version: int | None,
        *,
        percent: float = 10.0,
        alias: str = DEFAULT_ALIAS,
        reason: str = "",
    ) -> Alias:
        """Sends copies of a part of an alias' requests to a version; None ends that.

        Raises:
            GraftError: as start().
        """
        now = await self._get(self._name(adapter, alias))
        wanted = None if version is None else Shadow(version, percent)
        kept = convert.alias(now).rollout or Rollout()
        return await self._set(now, now.canaries, replace(kept, shadow=wanted), reason)

    async def pause(
        self, adapter: str, *, alias: str = DEFAULT_ALIAS, paused: bool = True, reason: str = ""
    ) -> Alias:
        """Holds the steps where they are, or lets them go on. Limits are judged all the same.

        Raises:
            GraftError: NO_ROLLOUT where no steps are taken, ALIAS_MOVED.
        """
        now = await self._get(self._name(adapter, alias))
        rollout = convert.alias(now).rollout
        if rollout is None or not rollout.steps_percent or not now.canaries:
            raise _none(now.name, "takes no steps")
        return await self._set(now, now.canaries, replace(rollout, paused=paused), reason)

    async def abort(self, adapter: str, *, alias: str = DEFAULT_ALIAS, reason: str = "") -> Alias:
        """Takes every canary out; the alias' version answers all requests again.

        Raises:
            GraftError: NO_ROLLOUT where there is nothing to end, ALIAS_NOT_FOUND, PROTECTED.
        """
        now = await self._get(self._name(adapter, alias))
        rollout = convert.alias(now).rollout
        if now.canaries:
            request = pb.RollbackAliasRequest(
                name=now.name, reason=reason, canaries=[one.version for one in now.canaries]
            )
            stub = self._connection.registry
            return convert.alias(
                await self._connection.call(stub.RollbackAlias, request, _REGISTRY)
            )
        if rollout is None or rollout.shadow is None:
            raise _none(now.name, "has no canary and no shadow")
        return await self._set(now, (), Rollout(rollout.limits), reason)

    async def _get(self, name: str) -> pb.Alias:
        stub = self._connection.registry
        return await self._connection.call(stub.GetAlias, pb.GetAliasRequest(name=name), _REGISTRY)

    async def _set(
        self, now: pb.Alias, canaries: Sequence[pb.Canary], rollout: Rollout, reason: str
    ) -> Alias:
        request = pb.SetAliasRequest(
            name=now.name,
            version=now.version,
            etag=now.etag,
            canaries=canaries,
            rollout=rollout_message(rollout, now.name.rsplit("/", 2)[0]),
            reason=reason,
        )
        stub = self._connection.registry
        return convert.alias(await self._connection.call(stub.SetAlias, request, _REGISTRY))


def _none(name: str, what: str) -> GraftError:
    return GraftError(
        Reason.NO_ROLLOUT,
        f"{name} {what}",
        next_step="Begin with `graft rollout start` or `graft rollout shadow`.",
        resource=name,
    )


def _here(message: inference_pb2.RolloutStatus) -> RolloutHere:
    shadow = message.shadow
    return RolloutHere(
        alias=message.alias,
        stable=_figures(message.stable),
        canaries=[
            CanaryStatus(
                one.weight_percent,
                inference_pb2.CanaryState.Name(one.state).removeprefix("CANARY_STATE_").lower(),
                one.message,
                _figures(one.figures),
            )
            for one in message.canaries
        ],
        shadow=ShadowFigures(
            shadow.version,
            shadow.compared,
            shadow.equal,
            shadow.agreement,
            shadow.length_ratio,
            shadow.time_ratio,
            shadow.failed,
            shadow.dropped,
        )
        if message.HasField("shadow")
        else None,
    )


def _figures(part: inference_pb2.PartFigures) -> PartFigures:
    return PartFigures(
        part.version,
        part.requests,
        part.error_rate,
        part.refusal_rate,
        part.babble_rate,
        part.first_token_s if part.HasField("first_token_s") else None,
        part.token_s if part.HasField("token_s") else None,
        part.mean_tokens if part.HasField("mean_tokens") else None,
    )
