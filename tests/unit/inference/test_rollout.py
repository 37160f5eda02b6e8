"""Rollouts as their users see them: a real registry, endpoints that decide, judge, and take back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import rollout_pb2
from graft.rollout_policy import RolloutLimits

from services.inference.blends.fake import FakeBlender
from services.inference.engines.acting import Act
from services.inference.rollout.split import choose
from tests.support.inference import question
from tests.support.models import make_adapter
from tests.support.rollouts import ALIAS, CANARY, KEYS, STABLE, Traffic, World, rollout_world
from tests.support.waiting import eventually

SERVING = rollout_pb2.CANARY_STATE_SERVING
FAILED = rollout_pb2.CANARY_STATE_FAILED
TAKEN_OUT = rollout_pb2.CANARY_STATE_TAKEN_OUT
GOOD = Act(token_s=0.0005)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    """Three adapters of the tiny base; treat them as read-only."""
    root = tmp_path_factory.mktemp("rollout")
    return [make_adapter(root / str(seed), tiny_base, seed=seed) for seed in range(3)]


@asynccontextmanager
async def world_of(
    tmp_path: Path, tiny_base: Path, three: list[Path], act: Act = GOOD, **settings: Any
) -> AsyncIterator[World]:
    """Versions 1 and 3 are good; 2 behaves as told."""
    acts = {1: GOOD, 2: act, 3: GOOD}
    async with rollout_world(tmp_path, tiny_base, three, acts, **settings) as world:
        yield world


def metric(world: World, name: str, replica: int = 0, **labels: str) -> float:
    registry = world.replicas[replica].server.metrics_registry
    return registry.get_sample_value(f"graft_inference_{name}", labels) or 0.0


async def test_a_session_keeps_its_part_on_every_replica_while_the_weight_grows(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three, replicas=2) as world:
        seen: list[dict[str, set[int]]] = []
        for percent in (20.0, 60.0):
            await world.client.rollouts.start("bot", 2, percent=percent)
            traffic = Traffic()

            async def split() -> bool:
                figures = [await world.state(number) for number in (0, 1)]
                weights = [one and one.canaries[0].weight_percent for one in figures]
                return weights == [percent, percent]  # noqa: B023

            await eventually(split, "the weight")
            await world.canary_is(SERVING)
            for _ in range(2):
                # Odd and even keys change endpoints from one round to the next.
                await world.round(traffic)
                await asyncio.gather(
                    *(world.ask(traffic, key, (number + 1) % 2) for number, key in enumerate(KEYS))
                )
            wanted = {
                key: {CANARY if choose(ALIAS, [(2, percent)], key) else STABLE} for key in KEYS
            }
            assert traffic.parts == wanted
            seen.append(traffic.parts)
        assert all(seen[1][key] == {CANARY} for key, part in seen[0].items() if part == {CANARY})
        answer = await world.replicas[0].ask("bot:1")
        assert answer.provenance.rollout_part == rollout_pb2.ROLLOUT_PART_UNSPECIFIED
        labels = {"adapter": "bot", "alias": "production", "part": "canary"}
        assert metric(world, "rollout_requests_total", 0, **labels) > 0


async def test_without_a_key_each_request_is_decided_by_itself(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        await world.client.rollouts.start("bot", 2, percent=50)
        await world.canary_is(SERVING)
        answers = [(await world.replicas[0].ask("bot")).provenance for _ in range(60)]
        by_canary = sum(one.rollout_part == CANARY for one in answers)
        assert 10 < by_canary < 50
        assert {one.rollout_alias for one in answers} == {ALIAS}


@pytest.mark.parametrize(
    ("act", "limit"),
    [
        (Act(first_s=0.4, token_s=0.02), {"max_first_token_s": 0.3}),
        # So slow that what the event loop adds to each token, of both versions, hides nothing of it.
        (Act(token_s=0.2), {"max_token_ratio": 2.0}),
        (Act(token_s=0.0005, fails=True), {"max_error_rate": 0.1}),
        (Act(text="so ", babbles=True), {"max_babble_rate": 0.3}),
        (Act("I'm sorry, no."), {"max_refusal_rate": 0.3, "refusal_patterns": ("I'm sorry",)}),
    ],
    ids=["late", "slow", "failing", "babbling", "refusing"],
)
async def test_a_bad_canary_is_taken_back_and_only_its_share_was_touched(
    tmp_path: Path, tiny_base: Path, three: list[Path], act: Act, limit: dict[str, Any]
) -> None:
    async with world_of(tmp_path, tiny_base, three, act, replicas=2) as world:
        # A failure is logged with its traceback, which takes its time: five of them in a window all the same.
        limits = RolloutLimits(window_s=60.0, min_requests=5, **limit)
        await world.client.rollouts.start("bot", 2, limits=limits, percent=30)
        await world.canary_is(SERVING)
        traffic, done = Traffic(), asyncio.Event()
        flow = asyncio.create_task(world.flow(traffic, done))
        await world.taken_back()
        done.set()
        await flow
        alias = await world.alias()
        (name,) = set(limit) - {"refusal_patterns"}
        assert alias.rollout_report.limit == name
        assert alias.rollout_report.version.endswith("/2")
        assert alias.rollout_report.observed > alias.rollout_report.allowed
        assert alias.actor == "inference"
        # Of two endpoints one did it: start, and one way back.
        history = await world.client.adapters.history("bot")
        assert [len(move.canaries) for move in history] == [0, 1, 0]
        touched = {key for key, parts in traffic.parts.items() if CANARY in parts}
        assert touched <= {key for key in KEYS if choose(ALIAS, [(2, 30.0)], key)}
        after = Traffic()
        await world.round(after)
        assert (after.by_canary, after.failed, set(after.versions.values())) == (0, 0, {1})
        backs = [metric(world, "rollout_steps_total", one, step="taken_back") for one in (0, 1)]
        assert sum(backs) == 1


async def test_a_good_canary_goes_through_its_steps_and_becomes_the_version(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three, replicas=2) as world:
        limits = RolloutLimits(window_s=1.0, min_requests=3, max_error_rate=0.1)
        await world.client.rollouts.start("bot", 2, limits=limits, steps=[30, 60, 100])
        await world.client.rollouts.pause("bot")
        await world.canary_is(SERVING)
        traffic, done = Traffic(), asyncio.Event()
        flow = asyncio.create_task(world.flow(traffic, done))
        await world.client.rollouts.pause("bot", paused=False)

        async def promoted() -> bool:
            return (await world.alias()).version.endswith("/2")

        await eventually(promoted, "the last step", within_s=60)
        await world.taken_back()
        after = Traffic()

        async def everybody() -> bool:
            await world.round(after)
            return set(after.versions.values()) == {2}

        await eventually(everybody, "everybody on version 2")
        done.set()
        await flow
        assert (traffic.failed, after.failed) == (0, 0)
        history = await world.client.adapters.history("bot")
        weights = [list(move.canaries.values()) for move in reversed(history)]
        assert weights == [[], [30.0], [30.0], [30.0], [60.0], []]
        assert (await world.alias()).rollout.limits.max_error_rate == 0.1


async def test_a_canary_that_cannot_be_loaded_gets_nothing_and_is_taken_back(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        world.replicas[0].fake.load_failures.append(
            GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors", next_step="Train it anew.")
        )
        traffic = Traffic()
        await world.client.rollouts.start("bot", 2, percent=50)
        await world.canary_is(FAILED)
        await world.round(traffic)
        assert (traffic.failed, traffic.by_canary, set(traffic.versions.values())) == (0, 0, {1})
        state = await world.state()
        assert state is not None
        assert "bad tensors" in state.canaries[0].message
        assert metric(world, "rollout_steps_total", step="not_loaded") == 1
        # With limits it is taken back in the registry, too.
        await world.client.rollouts.abort("bot")
        limits = RolloutLimits(window_s=5.0, max_error_rate=0.1)
        await world.client.rollouts.start("bot", 2, limits=limits, percent=50)
        await world.taken_back()
        assert (await world.alias()).rollout_report.limit == "load"


async def test_while_the_registry_is_away_the_canary_stays_out_here_and_it_is_told_later(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three, Act(fails=True)) as world:
        world.registries[0].away = True
        limits = RolloutLimits(window_s=60.0, min_requests=3, max_error_rate=0.1)
        await world.client.rollouts.start("bot", 2, limits=limits, percent=50)
        await world.canary_is(SERVING)
        await world.round(Traffic())
        await world.canary_is(TAKEN_OUT)
        await eventually(lambda: world.registries[0].tries > 1, "trying again")
        traffic = Traffic()
        await world.round(traffic)
        assert (traffic.failed, traffic.by_canary) == (0, 0)
        assert (await world.alias()).canaries
        world.registries[0].away = False
        await world.taken_back()


async def test_one_call_goes_back(tmp_path: Path, tiny_base: Path, three: list[Path]) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        await world.client.rollouts.start("bot", 2, percent=90)
        await world.canary_is(SERVING)
        before = Traffic()
        await world.round(before)
        assert before.by_canary > 30
        moved = await world.client.rollouts.abort("bot", reason="a bad feeling")
        assert (moved.canaries, moved.reason) == ({}, "a bad feeling")
        await world.taken_back()
        after = Traffic()
        await world.round(after)
        assert set(after.versions.values()) == {1}
        engine = world.replicas[0].fake
        await eventually(lambda: len(engine.loaded) == 1, "unloading the canary")
        with pytest.raises(GraftError) as raised:
            await world.client.rollouts.abort("bot")
        assert raised.value.reason is Reason.NO_ROLLOUT


async def test_a_shadow_answers_copies_that_nobody_sees(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    other = Act("all is lost")
    async with world_of(tmp_path, tiny_base, three, other) as world:
        await world.client.rollouts.shadow("bot", 2, percent=100)

        async def figures() -> rollout_pb2.ShadowFigures:
            state = await world.state()
            return rollout_pb2.ShadowFigures() if state is None else state.shadow

        async def there() -> bool:
            return bool((await figures()).version)

        await eventually(there, "the shadow")
        traffic = Traffic()
        for key in KEYS[:10]:
            await world.ask(traffic, key, stream=key != KEYS[0])

        async def compared() -> bool:
            return (await figures()).compared + (await figures()).dropped == 10

        await eventually(compared, "the copies")
        found = await figures()
        assert set(traffic.versions.values()) == {1}
        assert (found.equal, found.failed) == (0, 0)
        # "all is well" and "all is lost" share seven of eleven letters.
        assert found.agreement == pytest.approx(7 / 11)
        assert found.length_ratio == 1.0
        await world.client.rollouts.shadow("bot", 3, percent=100)

        async def moved() -> bool:
            return (await figures()).version.endswith("/3")

        await eventually(moved, "another shadow")
        await world.client.rollouts.abort("bot")
        await eventually(lambda: len(world.replicas[0].fake.loaded) == 1, "unloading the shadow")


async def test_a_failing_shadow_and_a_busy_engine_touch_no_request(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    failing = Act(fails=True)
    async with world_of(tmp_path, tiny_base, three, failing, max_in_flight=4) as world:
        await world.client.rollouts.shadow("bot", 2, percent=100)

        async def there() -> bool:
            state = await world.state()
            return state is not None and state.HasField("shadow")

        await eventually(there, "the shadow")
        traffic = Traffic()
        await world.ask(traffic, "anybody")
        await eventually(
            lambda: metric(world, "shadow_copies_total", outcome="failed") >= 1, "a failed copy"
        )

        async def dropping() -> bool:
            # Sixty at once where four run: requests wait, and copies are dropped.
            await world.round(traffic)
            return metric(world, "shadow_copies_total", outcome="dropped") > 10

        await eventually(dropping, "dropping")
        assert traffic.failed == 0


async def test_a_session_key_that_is_too_long_is_named(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        request = question("bot")
        request.session_key = "k" * 300
        innocent = asyncio.create_task(world.ask(traffic := Traffic(), "anybody"))
        with pytest.raises(grpc.aio.AioRpcError, match="session_key has 300 characters"):
            await world.replicas[0].stub.Generate(request)
        await innocent
        assert traffic.failed == 0


async def test_a_canary_that_was_pushed_out_and_does_not_come_back_fails_nobody(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        await world.client.rollouts.start("bot", 2, percent=90)
        await world.canary_is(SERVING)
        replica = world.replicas[0]
        residency = replica.server.residency
        assert residency is not None
        (canary,) = [each for each in residency.current() if each.version.number == 2]
        residency.retire(canary.version)
        await eventually(lambda: len(replica.fake.loaded) == 1, "the eviction")
        replica.fake.load_failures.append(
            GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors", next_step="Train it anew.")
        )
        traffic = Traffic()
        await world.round(traffic)
        assert (traffic.failed, traffic.by_canary) == (0, 0)
        await world.canary_is(FAILED)


async def test_an_alias_that_nobody_asked_for_loads_its_canary_at_its_first_request(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three) as world:
        beta = ALIAS.replace("production", "beta")
        await world.calls.set_alias_named(beta, "namespaces/default/adapters/bot/versions/1")
        await world.client.rollouts.start("bot", 3, alias="beta", percent=95)

        async def seen() -> bool:
            return await world.state() is not None

        await eventually(seen, "the canary")
        replica = world.replicas[0]
        assert len(replica.fake.loaded) == 1
        assert (await replica.ask("bot@beta")).provenance.rollout_part == STABLE

        async def by_canary() -> bool:
            return (await replica.ask("bot@beta")).provenance.version.endswith("/3")

        await eventually(by_canary, "the canary's part")
        assert (await replica.ask("bot")).provenance.version.endswith("/1")


def asked(model: str, key: str) -> pb.GenerateRequest:
    request = question(model)
    request.session_key = key
    return request


async def test_a_blend_has_the_part_of_an_alias_that_the_session_has(
    tmp_path: Path, tiny_base: Path, three: list[Path]
) -> None:
    async with world_of(tmp_path, tiny_base, three, blender=FakeBlender()) as world:
        await world.client.rollouts.start("bot", 2, percent=40.0)
        await world.canary_is(SERVING)
        stub = world.replicas[0].stub
        alone, blended = {}, {}
        for key in KEYS[:12]:
            answer = await stub.Generate(asked("bot@production", key))
            alone[key] = answer.provenance.version.rpartition("/")[2]
            answer = await stub.Generate(asked("0.5*bot@production+0.5*bot:3", key))
            parts = {one.version.rpartition("/")[2] for one in answer.provenance.parts}
            (blended[key],) = parts - {"3"}
    assert alone == blended
    assert set(alone.values()) == {"1", "2"}
