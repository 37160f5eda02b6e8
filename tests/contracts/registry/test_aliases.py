"""Moves of aliases behind policies and gates, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from graft.errors import GraftError, Reason

from services.common.caller import CALLER, Caller
from services.registry.catalogue.approvals import Approvals
from services.registry.catalogue.base import AliasMove, Catalogue, RequestKey
from services.registry.catalogue.database import Database
from services.registry.catalogue.policies import NewPolicy, Policies
from services.registry.domain import (
    Action,
    AliasPolicy,
    ApprovalCondition,
    Comparison,
    Condition,
    LabelCondition,
    MetricCondition,
)
from tests.support.catalogue import BOT, PRODUCTION, fill, move, version

BETTER = MetricCondition("eval_loss", Comparison.LESS, None, "production")
ACCURATE = MetricCondition("accuracy", Comparison.AT_LEAST, 0.9)


@contextmanager
def acting_as(actor: str) -> Any:
    """Whoever makes the calls inside."""
    token = CALLER.set(Caller(actor, "SetAlias", "r"))
    try:
        yield
    finally:
        CALLER.reset(token)


def policy(
    *conditions: Condition, protected: bool = False, movers: Sequence[str] = ()
) -> NewPolicy:
    """A new policy of bot@production."""
    return NewPolicy(PRODUCTION, protected, tuple(movers), conditions, None, "")


@pytest.fixture
async def measured(database: Database, catalogue: Catalogue) -> Catalogue:
    """bot with versions 1 to 4, whose eval_loss falls, rises, is missing and is NaN."""
    await fill(database, catalogue, versions=0)
    for number, metrics in enumerate(
        (
            {"eval_loss": 0.5},
            {"eval_loss": 0.4},
            {"eval_loss": 0.6},
            {},
            {"eval_loss": float("nan")},
        ),
        start=1,
    ):
        labels = {"reviewed": "yes"} if number == 2 else {}
        await catalogue.commit_version(version(number, metrics=metrics, labels=labels), None)
    return catalogue


async def refusal(catalogue: Catalogue, wanted: AliasMove) -> GraftError:
    """The error of a move, which changes nothing."""
    before = await catalogue.list_aliases("default", None)
    with pytest.raises(GraftError) as raised:
        await catalogue.move_alias(wanted)
    assert await catalogue.list_aliases("default", None) == before
    return raised.value


class TestGates:
    async def test_a_better_version_passes_and_its_report_is_kept(
        self, measured: Catalogue
    ) -> None:
        await measured.move_alias(move(1))
        moved = await measured.move_alias(replace(move(2), gate=(BETTER,)))
        assert moved.gate_report is not None
        (result,) = moved.gate_report.results
        assert (result.passed, result.actual, result.bound) == (True, 0.4, 0.5)
        (newest, *_) = (await measured.list_alias_history(PRODUCTION, 10, None)).items
        assert newest.gate_report == moved.gate_report
        assert await measured.get_alias(PRODUCTION) == moved

    async def test_a_worse_version_is_refused_with_both_numbers(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        error = await refusal(measured, replace(move(3), gate=(BETTER,)))
        assert error.reason is Reason.GATE_REFUSED
        assert "0.6" in error.message
        assert "0.5" in error.message
        assert (error.metadata["actual"], error.metadata["bound"]) == ("0.6", "0.5")
        assert "eval_loss < @production" in error.metadata["condition"]

    async def test_a_missing_metric_and_a_nan_do_not_hold(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        for number, said in ((4, "no metric eval_loss"), (5, "nan")):
            error = await refusal(measured, replace(move(number), gate=(BETTER,)))
            assert said in error.message

    async def test_a_margin_asks_for_more(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        strict = replace(BETTER, margin=-0.2)
        error = await refusal(measured, replace(move(2), gate=(strict,)))
        assert error.metadata["bound"] == "0.3"

    async def test_the_first_version_has_nothing_to_be_better_than(
        self, measured: Catalogue
    ) -> None:
        moved = await measured.move_alias(replace(move(1), gate=(BETTER,)))
        assert moved.gate_report is not None
        assert "names nothing yet" in moved.gate_report.results[0].detail

    async def test_all_conditions_of_the_policy_and_the_request_must_hold(
        self, measured: Catalogue, database: Database
    ) -> None:
        await Policies(database).set(policy(LabelCondition("reviewed", "yes")))
        error = await refusal(measured, move(1))
        assert "label reviewed" in error.message
        moved = await measured.move_alias(replace(move(2), gate=(BETTER,)))
        assert moved.gate_report is not None
        assert len(moved.gate_report.results) == 2

    async def test_a_canary_has_to_pass_too(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        wanted = replace(move(1), canaries=((3, 5.0),), gate=(BETTER,))
        assert (await refusal(measured, wanted)).metadata["version"] == f"{BOT}/versions/3"

    async def test_a_refused_promotion_is_in_the_audit_log(
        self, measured: Catalogue, database: Database
    ) -> None:
        await measured.move_alias(move(1))
        await refusal(measured, replace(move(3), gate=(BETTER,)))
        rows = await database.read(
            lambda connection: connection.exec_driver_sql(
                "SELECT resource, detail FROM audit_entries ORDER BY number DESC LIMIT 1"
            )
        )
        last = rows.one()
        assert last.resource == PRODUCTION
        assert '"refused"' in last.detail

    async def test_checking_only_changes_nothing(self, measured: Catalogue) -> None:
        would = await measured.move_alias(replace(move(2), gate=(BETTER,), validate_only=True))
        assert would.version == 2
        with pytest.raises(GraftError) as raised:
            await measured.get_alias(PRODUCTION)
        assert raised.value.reason is Reason.ALIAS_NOT_FOUND


class TestApprovals:
    async def test_others_have_to_approve(self, measured: Catalogue, database: Database) -> None:
        approvals = Approvals(database)
        await Policies(database).set(policy(ApprovalCondition(2)))
        for actor in ("ann", "bob"):
            with acting_as(actor):
                await approvals.approve(BOT, 2, "", "looks well")
        # ann moves it, so her own approval does not count.
        error = await refusal(measured, move(2))
        assert "1 approvals (bob)" in error.message
        with acting_as("cat"):
            await approvals.approve(BOT, 2, "production", "measured it")
        assert (await measured.move_alias(move(2))).version == 2

    async def test_an_approval_is_listed_once_and_can_be_taken_back(
        self, measured: Catalogue, database: Database
    ) -> None:
        approvals = Approvals(database)
        with acting_as("bob"):
            first = await approvals.approve(BOT, 2, "", "looks well")
            assert await approvals.approve(BOT, 2, "", "again") == first
            assert await approvals.list(BOT, 2) == [first]
            await approvals.revoke(BOT, 2, "")
            with pytest.raises(GraftError, match="bob has not approved"):
                await approvals.revoke(BOT, 2, "")
        assert await approvals.list(BOT, 2) == []

    async def test_somebody_without_a_name_cannot_approve(
        self, measured: Catalogue, database: Database
    ) -> None:
        with pytest.raises(GraftError, match="without a name"):
            await Approvals(database).approve(BOT, 2, "", "")


class TestProtection:
    async def test_only_its_movers_move_a_protected_alias(
        self, measured: Catalogue, database: Database
    ) -> None:
        await measured.move_alias(move(1))
        await Policies(database).set(policy(protected=True, movers=["ann"]))
        stranger = replace(move(2, expected=1), actor="eve")
        error = await refusal(measured, stranger)
        assert (error.reason, error.metadata["movers"]) == (Reason.PROTECTED, "ann")
        assert (await refusal(measured, move(2))).reason is Reason.PROTECTED
        no_reason = replace(move(2, expected=1), reason="")
        assert "a reason" in (await refusal(measured, no_reason)).message
        assert (await measured.move_alias(move(2, expected=1))).version == 2

    async def test_it_is_not_deleted(self, measured: Catalogue, database: Database) -> None:
        await measured.move_alias(move(1))
        await Policies(database).set(policy(protected=True, movers=["ann"]))
        with pytest.raises(GraftError, match="cannot be deleted"):
            await measured.delete_alias(PRODUCTION, None, "")

    async def test_its_policy_is_changed_by_its_movers(
        self, measured: Catalogue, database: Database
    ) -> None:
        policies = Policies(database)
        first = await policies.set(policy(protected=True, movers=["ann"]))
        with acting_as("eve"), pytest.raises(GraftError, match="ann may"):
            await policies.set(policy())
        with acting_as("ann"):
            with pytest.raises(GraftError, match="was changed since"):
                await policies.set(replace(policy(), etag="old"))
            await policies.set(replace(policy(ACCURATE), etag=first.etag))
        found = await policies.get(PRODUCTION)
        assert found is not None
        assert (found.protected, found.conditions) == (False, (ACCURATE,))

    async def test_it_is_told_as_an_event(self, measured: Catalogue, database: Database) -> None:
        revision = await measured.revision()
        await Policies(database).set(policy(ACCURATE))
        (event,) = await measured.events(revision, 10, None)
        assert isinstance(event.resource, AliasPolicy)
        assert (event.action, event.parent) == (Action.CREATED, BOT)


class TestSplits:
    async def test_canaries_are_kept_with_their_digests(self, measured: Catalogue) -> None:
        moved = await measured.move_alias(replace(move(1), canaries=((2, 5.0), (3, 1.5))))
        assert [
            (one.version, one.version_digest, one.weight_percent) for one in moved.canaries
        ] == [
            (2, "sha256:2", 5.0),
            (3, "sha256:3", 1.5),
        ]
        assert await measured.get_alias(PRODUCTION) == moved

    async def test_another_weight_is_a_move(self, measured: Catalogue) -> None:
        first = await measured.move_alias(replace(move(1), canaries=((2, 5.0),)))
        second = await measured.move_alias(replace(move(1), canaries=((2, 50.0),)))
        assert second.etag != first.etag
        again = await measured.move_alias(replace(move(1), canaries=((2, 50.0),)))
        assert again == second

    async def test_a_rollback_brings_the_whole_state_back(self, measured: Catalogue) -> None:
        await measured.move_alias(replace(move(1), canaries=((2, 5.0),)))
        await measured.move_alias(move(2))
        back = await measured.move_alias(move(None))
        assert (back.version, [one.version for one in back.canaries]) == (1, [2])

    async def test_a_rollback_asks_no_gate(self, measured: Catalogue, database: Database) -> None:
        await measured.move_alias(move(3))
        await measured.move_alias(move(2))
        await Policies(database).set(policy(BETTER))
        assert (await measured.move_alias(move(None))).version == 3

    async def test_an_unknown_canary_is_named(self, measured: Catalogue) -> None:
        error = await refusal(measured, replace(move(1), canaries=((77, 5.0),)))
        assert f"{BOT}/versions/77" in error.message


class TestDeletion:
    async def test_a_deleted_alias_is_gone_and_its_history_stays(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        revision = await measured.revision()
        await measured.delete_alias(PRODUCTION, None, "not needed")
        for call in (measured.get_alias, measured.get_version_by_alias):
            with pytest.raises(GraftError) as raised:
                await call(PRODUCTION)
            assert raised.value.reason is Reason.ALIAS_NOT_FOUND
        history = (await measured.list_alias_history(PRODUCTION, 10, None)).items
        assert [(one.version, one.deleted) for one in history] == [(1, True), (1, False)]
        (event,) = await measured.events(revision, 10, None)
        assert event.action is Action.DELETED
        moved = await measured.move_alias(move(2, expected=0))
        assert moved.previous_version == 0

    async def test_another_etag_keeps_it(self, measured: Catalogue) -> None:
        await measured.move_alias(move(1))
        with pytest.raises(GraftError) as raised:
            await measured.delete_alias(PRODUCTION, "old", "")
        assert raised.value.reason is Reason.ALIAS_MOVED


async def test_a_repeated_request_moves_once(measured: Catalogue) -> None:
    key = RequestKey("move-1", "hash")
    first = await measured.move_alias(move(1), key)
    await measured.move_alias(move(2))
    assert await measured.move_alias(move(1), key) == first
    assert (await measured.get_alias(PRODUCTION)).version == 2
    with pytest.raises(GraftError) as raised:
        await measured.move_alias(move(3), RequestKey("move-1", "another"))
    assert raised.value.reason is Reason.REQUEST_ID_REUSED


async def test_of_32_writers_exactly_one_wins_each_round(measured: Catalogue) -> None:
    now = await measured.move_alias(move(1))
    for _ in range(20):
        others = [number for number in (1, 2, 3) if number != now.version]

        async def write(index: int, etag: str = now.etag, others: list[int] = others) -> bool:
            try:
                await measured.move_alias(move(others[index % 2], etag=etag))
            except GraftError as error:
                if error.reason is not Reason.ALIAS_MOVED:
                    raise
                return False
            return True

        assert sum(await asyncio.gather(*(write(index) for index in range(32)))) == 1
        now = await measured.get_alias(PRODUCTION)
