"""Rollouts in the registry over real gRPC: kept with the alias, checked, taken out, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graft
import pytest
from graft.channel import rpc_errors
from graft.errors import ConflictError, GraftError, InvalidError, Reason
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import rollout_pb2
from graft.rollout_policy import RolloutLimits

from services.registry.server import RegistryServer
from tests.support.postgres import PostgresServer
from tests.support.registry import RegistryCalls, registry_calls, running_registry

NAME = "namespaces/default/adapters/bot/aliases/production"
LIMITS = rollout_pb2.RolloutLimits(window_s=1, max_error_rate=0.05, min_requests=7)


async def begin(calls: RegistryCalls, versions: list[pb.Version], **fields: Any) -> pb.Alias:
    """Version 2 as a canary of version 1 with 5 %."""
    canary = pb.Canary(version=versions[1].name, weight_percent=5)
    wanted = {"canaries": [canary], "rollout": rollout_pb2.Rollout(limits=LIMITS), **fields}
    return await calls.set_alias_named(NAME, versions[0].name, **wanted)


async def test_a_rollout_is_kept_with_the_alias_its_history_and_its_event(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    began = await begin(calls, versions)
    assert began.rollout.limits == LIMITS
    moved = await calls.set_alias(versions[1].name, reason="by hand")
    assert moved.rollout.limits == LIMITS, "what is left out stays"
    ended = await calls.set_alias(versions[1].name, rollout=rollout_pb2.Rollout())
    assert not ended.HasField("rollout")
    event = await calls.first_of_watch(after=ended.revision - 2)
    assert event.alias == moved
    back = await calls.stub.RollbackAlias(pb.RollbackAliasRequest(name=NAME))
    assert back.rollout.limits == LIMITS, "a step back is a step back in all of it"


async def test_canaries_are_taken_out_by_the_first_that_says_why(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    began = await begin(calls, versions)
    wrong = rollout_pb2.RolloutReport(version=versions[1].name, observed=float("nan"))
    with pytest.raises(InvalidError, match="no numbers"), rpc_errors("the registry"):
        await calls.stub.RollbackAlias(
            pb.RollbackAliasRequest(name=NAME, canaries=[versions[1].name], report=wrong)
        )
    report = rollout_pb2.RolloutReport(
        version=versions[1].name, limit="max_error_rate", observed=0.4, allowed=0.05, requests=50,
        window_s=1, detail="40 % failed",
    )  # fmt: skip
    request = pb.RollbackAliasRequest(
        name=NAME, etag=began.etag, canaries=[versions[1].name], report=report, reason="bad"
    )
    out = await calls.stub.RollbackAlias(request)
    assert (out.version, list(out.canaries), out.rollout_report) == (versions[0].name, [], report)
    assert out.rollout.limits == LIMITS
    with pytest.raises(ConflictError), rpc_errors("the registry"):
        await calls.stub.RollbackAlias(request)
    assert await calls.stub.GetAlias(pb.GetAliasRequest(name=NAME)) == out


async def test_steps_are_taken_from_the_state_in_which_they_were_judged_and_not_too_soon(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    rollout = rollout_pb2.Rollout(limits=LIMITS, steps_percent=[5, 50, 100])
    rollout.limits.window_s = 3600
    began = await begin(calls, versions, rollout=rollout)
    request = pb.AdvanceRolloutRequest(name=NAME, etag=began.etag, reason="well")

    with pytest.raises(GraftError, match="less than its window") as raised, rpc_errors("r"):
        await calls.stub.AdvanceRollout(request)
    assert raised.value.reason is Reason.NO_ROLLOUT
    with pytest.raises(ConflictError), rpc_errors("r"):
        await calls.stub.AdvanceRollout(pb.AdvanceRolloutRequest(name=NAME, etag="stale"))
    with pytest.raises(InvalidError, match="No etag"), rpc_errors("r"):
        await calls.stub.AdvanceRollout(pb.AdvanceRolloutRequest(name=NAME))


async def test_a_protected_alias_is_taken_back_by_whoever_saw_its_limit_passed(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    limits = RolloutLimits(window_s=5, max_error_rate=0.1)
    async with (
        graft.Client(registry=registry.address, actor="ann") as ann,
        graft.Client(registry=registry.address, actor="eve") as eve,
    ):
        await ann.promotion.set_policy("bot", protected=True, movers=["ann"])
        await ann.adapters.promote("bot", 1, expected=0, reason="first")
        await ann.rollouts.start("bot", 2, limits=limits, reason="try it")
        with pytest.raises(GraftError, match="is protected") as raised:
            await eve.rollouts.abort("bot", reason="mine")
        assert raised.value.reason is Reason.PROTECTED
    async with registry_calls(registry.address) as calls:
        report = rollout_pb2.RolloutReport(version=versions[1].name, limit="max_error_rate")
        out = await calls.stub.RollbackAlias(
            pb.RollbackAliasRequest(
                name=NAME, canaries=[versions[1].name], report=report, reason="bad"
            )
        )
        assert not out.canaries


SHADOW: dict[str, Any] = {"version": "namespaces/default/adapters/bot/versions/1", "percent": 10}


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"limits": {"max_error_rate": 0.1}}, "window_s of .* is 0"),
        ({"limits": {"window_s": 60}}, "a window and no limit"),
        ({"limits": {"window_s": 60, "max_error_rate": 1.5}}, "max_error_rate of .* is 1.5"),
        ({"limits": {"window_s": 60, "max_error_rate": float("nan")}}, "max_error_rate"),
        ({"limits": {"window_s": 60, "max_token_ratio": 1}}, "max_token_ratio of .* is 1"),
        ({"limits": {"window_s": 60, "max_token_s": 0}}, "max_token_s of .* is 0"),
        ({"limits": {"window_s": 60, "max_token_s": 1, "min_requests": -1}}, "min_requests"),
        (
            {"limits": {"window_s": 60, "max_error_rate": 0.1, "refusal_patterns": ["no"]}},
            "max_refusal_rate is not",
        ),
        (
            {"limits": {"window_s": 60, "max_refusal_rate": 0.1, "refusal_patterns": ["a" * 201]}},
            "201 characters",
        ),
        (
            {"limits": {"window_s": 60, "max_refusal_rate": 0.1, "refusal_patterns": ["("]}},
            "not a regular expression",
        ),
        ({"steps_percent": [5, 50]}, "limits is not"),
        (
            {"limits": {"window_s": 60, "max_error_rate": 0.1}, "steps_percent": [50, 5]},
            "growing numbers",
        ),
        (
            {"limits": {"window_s": 60, "max_error_rate": 0.1}, "steps_percent": [50, 150]},
            "growing numbers",
        ),
        ({"shadow": SHADOW}, "is a part of it"),
        ({"shadow": {**SHADOW, "version": SHADOW["version"][:-1] + "9", "percent": 0}}, "percent"),
        (
            {"shadow": {**SHADOW, "version": "namespaces/default/adapters/cat/versions/1"}},
            "another adapter",
        ),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    calls: RegistryCalls, versions: list[pb.Version], rollout: dict[str, Any], said: str
) -> None:
    await calls.set_alias(versions[0].name)
    before = await calls.stub.GetAlias(pb.GetAliasRequest(name=NAME))
    with pytest.raises(InvalidError, match=said) as raised:
        await begin(calls, versions, rollout=rollout_pb2.Rollout(**rollout))
    assert raised.value.next_step
    assert await calls.stub.GetAlias(pb.GetAliasRequest(name=NAME)) == before


async def test_a_shadow_that_is_not_there_is_refused(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    shadow = {**SHADOW, "version": SHADOW["version"][:-1] + "9"}
    with pytest.raises(GraftError) as raised:
        await begin(calls, versions, rollout=rollout_pb2.Rollout(shadow=shadow))  # type: ignore[arg-type]
    assert raised.value.reason is Reason.VERSION_NOT_FOUND


async def test_rollouts_are_kept_on_postgres_as_on_sqlite(
    tmp_path: Path, postgres: PostgresServer, tiny_base: Path, adapters: list[Path]
) -> None:
    database = postgres.create_database()
    async with (
        running_registry(tmp_path, database=database) as server,
        registry_calls(server.address) as calls,
    ):
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()
        versions = [await calls.commit(one, base.fingerprint.digest) for one in adapters[:2]]
        began = await begin(calls, versions)
        assert (await calls.stub.GetAlias(pb.GetAliasRequest(name=NAME))) == began
        assert began.rollout.limits == LIMITS
