"""Promotion as clients see it: over gRPC, with the SDK, on a real registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import graft
import pytest
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.server import RegistryServer


@asynccontextmanager
async def acting_as(actor: str, registry: RegistryServer) -> AsyncIterator[graft.Client]:
    """A client of that actor."""
    async with graft.Client(registry=registry.address, actor=actor) as client:
        yield client


async def test_a_policy_is_set_read_and_enforced(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    async with acting_as("ann", registry) as ann, acting_as("eve", registry) as eve:
        assert (await ann.promotion.policy("bot")).conditions == []
        await ann.promotion.set_policy(
            "bot", protected=True, movers=["ann"], conditions=["approvals >= 1"]
        )
        with pytest.raises(GraftError, match="eve may not change it, ann may") as raised:
            await eve.adapters.promote("bot", 1, expected=0, reason="mine")
        assert raised.value.reason is Reason.PROTECTED
        with pytest.raises(GraftError, match="0 approvals that count, and 1 are needed") as raised:
            await ann.adapters.promote("bot", 1, expected=0, reason="first")
        assert raised.value.reason is Reason.GATE_REFUSED
        await eve.promotion.approve("bot", 1, reason="fine by me")
        moved = await ann.adapters.promote("bot", 1, expected=0, reason="first")
        assert [check.name for check in moved.gate_report] == ["approvals >= 1"]
        assert [one.actor for one in await ann.promotion.approvals("bot", 1)] == ["eve"]


async def test_canaries_are_told_with_their_weights(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    async with acting_as("ann", registry) as ann:
        await ann.adapters.promote("bot", 1, canaries={2: 5.0})
        (alias,) = await ann.adapters.aliases("bot")
        assert alias.canaries == {versions[1].name: 5.0}


@pytest.mark.parametrize(
    ("canaries", "said"),
    [({1: 5.0}, "named twice"), ({2: 0.0}, "weights"), ({2: 100.0}, "weights")],
)
async def test_canaries_that_cannot_be_are_refused(
    registry: RegistryServer, versions: list[pb.Version], canaries: dict[int, float], said: str
) -> None:
    async with acting_as("ann", registry) as ann:
        with pytest.raises(GraftError, match=said):
            await ann.adapters.promote("bot", 1, canaries=canaries)
        assert await ann.adapters.aliases("bot") == []


async def test_an_alias_is_removed_and_stays_in_its_history(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    async with acting_as("ann", registry) as ann:
        await ann.adapters.promote("bot", 1, alias="staging")
        await ann.adapters.delete_alias("bot", alias="staging", reason="done")
        assert await ann.adapters.aliases("bot") == []
        newest, first = await ann.adapters.history("bot", alias="staging")
        assert (newest.deleted, newest.reason, first.deleted) == (True, "done", False)


async def test_a_gate_of_the_request_is_checked_without_moving(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    async with acting_as("ann", registry) as ann:
        with pytest.raises(GraftError, match="no metric eval_loss"):
            await ann.adapters.promote("bot", 1, gate=["eval_loss < 0.5"], validate_only=True)
        would = await ann.adapters.promote("bot", 2, validate_only=True)
        assert would.version == versions[1].name
        assert await ann.adapters.aliases("bot") == []


async def test_conditions_that_cannot_be_decided_are_named(
    registry: RegistryServer, versions: list[pb.Version]
) -> None:
    async with acting_as("ann", registry) as ann:
        stub = ann.connection.registry
        empty = pb.Condition()
        no_bound = pb.Condition(
            metric=pb.MetricCondition(metric="loss", comparison=pb.COMPARISON_LESS)
        )
        for condition, said in ((empty, "Condition 1 is empty"), (no_bound, "nothing to compare")):
            request = pb.SetAliasRequest(
                name="namespaces/default/adapters/bot/aliases/production",
                version=versions[0].name,
                gate=[condition],
            )
            with pytest.raises(GraftError, match=said):
                await ann.connection.call(stub.SetAlias, request, "the registry")
