"""Aliases over real gRPC: compare-and-set, rollback, history."""

from __future__ import annotations

import asyncio

import pytest
from graft.channel import call_metadata
from graft.errors import ConflictError, GraftError, InvalidError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import RegistryCalls

NAME = "namespaces/default/adapters/bot/aliases/production"


async def test_a_move_tells_who_and_why(calls: RegistryCalls, versions: list[pb.Version]) -> None:
    request = pb.SetAliasRequest(name=NAME, version=versions[0].name, reason="first")
    await calls.stub.SetAlias(request, metadata=call_metadata(actor="ann"))
    await calls.set_alias(versions[1].name, reason="better")
    await calls.stub.RollbackAlias(pb.RollbackAliasRequest(name=NAME, reason="worse"))
    history = await calls.stub.ListAliasHistory(pb.ListAliasHistoryRequest(name=NAME))
    moves = [(one.version[-1], one.previous_version[-1:], one.reason) for one in history.aliases]
    assert moves == [("1", "2", "worse"), ("2", "1", "better"), ("1", "", "first")]
    assert history.aliases[-1].actor == "ann"
    assert await calls.stub.GetAlias(pb.GetAliasRequest(name=NAME)) == history.aliases[0]


async def test_an_expectation_that_does_not_hold_is_aborted_naming_both(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    one, two = (version.name for version in versions)
    await calls.set_alias(one, expected_version="")
    for expected in ("", two):
        with pytest.raises(ConflictError) as raised:
            await calls.set_alias(two, expected_version=expected)
        assert raised.value.reason is Reason.ALIAS_MOVED
        assert raised.value.metadata["version"] == one
        assert raised.value.metadata["expected_version"] == expected
    moved = await calls.set_alias(two, expected_version=one)
    with pytest.raises(ConflictError):
        await calls.set_alias(one, etag="stale")
    assert (await calls.set_alias(one, etag=moved.etag)).version == one


async def test_of_32_concurrent_moves_with_one_expectation_one_wins(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    one, two = (version.name for version in versions)
    await calls.set_alias(one)
    for here, there in ((one, two), (two, one)):
        results = await asyncio.gather(
            *(calls.set_alias(there, expected_version=here) for _ in range(32)),
            return_exceptions=True,
        )
        won = [result for result in results if isinstance(result, pb.Alias)]
        lost = [result for result in results if isinstance(result, GraftError)]
        assert (len(won), len(lost)) == (1, 31)
        assert {error.reason for error in lost} == {Reason.ALIAS_MOVED}


async def test_a_namespace_lists_all_its_aliases_with_a_revision(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    for alias in ("production", "canary"):
        last = await calls.set_alias(versions[0].name, alias=alias)
    for parent in ("namespaces/default/adapters/-", "namespaces/default/adapters/bot"):
        answer = await calls.stub.ListAliases(pb.ListAliasesRequest(parent=parent))
        assert [one.name.rsplit("/", 1)[1] for one in answer.aliases] == ["canary", "production"]
        assert answer.revision == last.revision


async def test_an_alias_names_only_versions_of_its_own_adapter(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    await calls.create_adapter("other")
    with pytest.raises(InvalidError, match="another adapter"):
        await calls.set_alias_named("namespaces/default/adapters/other/aliases/x", versions[0].name)
    with pytest.raises(GraftError) as raised:
        await calls.set_alias("namespaces/default/adapters/bot/versions/99")
    assert raised.value.reason is Reason.VERSION_NOT_FOUND
