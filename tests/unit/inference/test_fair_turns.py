"""Who gets the next turn: tokens are shared by weight, slots go round, and no turn is ever lost."""

from __future__ import annotations

import asyncio
import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.scheduling.limits import Limit
from services.inference.scheduling.scheduler import SchedulingOptions
from tests.support.queueing import Asked, Simulation

BASE = ""
MOST_TOKENS = 12


def simulate(max_in_flight: int = 1, slots: int = 8, **options: object) -> Simulation:
    """A step takes a second: slots go round after 10 steps unless told otherwise."""
    values = {"slot_turn_s": 10.0, "slot_timeout_s": math.inf, **options}
    return Simulation(SchedulingOptions(max_in_flight, **values), slots)  # type: ignore[arg-type]


LOADS = st.lists(
    st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.lists(st.integers(1, MOST_TOKENS), min_size=3)),
    min_size=2,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(loads=LOADS, max_in_flight=st.integers(1, 3))
def test_adapters_that_always_have_work_get_tokens_by_weight(
    loads: list[tuple[float, list[int]]], max_in_flight: int
) -> None:
    weights = {f"a{number}": weight for number, (weight, _) in enumerate(loads)}
    lengths = {f"a{number}": each for number, (_, each) in enumerate(loads)}

    async def run() -> Simulation:
        limits = {name: Limit(weight=weight) for name, weight in weights.items()}
        simulation = simulate(max_in_flight, adapter_limits=limits)
        for turn in range(200):
            for name, tokens in lengths.items():
                simulation.ask(name, tokens[turn % len(tokens)], slot=BASE)
        await simulation.settle()
        await simulation.step(150)
        for asked in simulation.asked:
            assert asked.task is not None
            asked.task.cancel()
        await simulation.settle()
        return simulation

    simulation = asyncio.run(run())
    # What is given at once, and what it is expected to take wrongly, is all that they may differ by.
    bound = 2 * (max_in_flight + 1) * (MOST_TOKENS + 1)
    for one, other in combinations(weights, 2):
        served = (simulation.served[name] / weights[name] for name in (one, other))
        assert abs(next(served) - next(served)) <= bound


async def test_namespaces_share_first_and_their_adapters_what_they_get() -> None:
    simulation = simulate()
    for _ in range(100):
        simulation.ask("lone", 4, slot=BASE, namespace="small")
        for adapter in ("a", "b", "c", "d"):
            simulation.ask(adapter, 4, slot=BASE, namespace="large")
    await simulation.settle()
    await simulation.step(200)
    lone = simulation.served["lone"]
    large = [simulation.served[adapter] for adapter in ("a", "b", "c", "d")]
    assert abs(lone - sum(large)) <= 20
    assert max(large) - min(large) <= 10


async def test_who_asked_nothing_has_saved_nothing() -> None:
    simulation = simulate()
    simulation.ask("late", 4, slot=BASE)
    for _ in range(50):
        simulation.ask("busy", 4, slot=BASE)
    await simulation.settle()
    await simulation.step(100)
    for _ in range(50):
        simulation.ask("late", 4, slot=BASE)
    await simulation.settle()
    before = simulation.served.copy()
    await simulation.step(40)
    late, busy = (simulation.served[name] - before[name] for name in ("late", "busy"))
    assert abs(late - busy) <= 10


async def test_long_answers_are_paid_for_although_nobody_knew_their_length() -> None:
    simulation = simulate()
    for _ in range(60):
        simulation.ask("long", 30, slot=BASE)
        simulation.ask("short", 3, slot=BASE)
    await simulation.settle()
    await simulation.step(240)
    assert abs(simulation.served["long"] - simulation.served["short"]) <= 62


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_flood_on_every_slot_lets_another_on_after_its_turn(slots: int) -> None:
    simulation = simulate(8, slots)
    floods = [f"loud{number}" for number in range(slots)]

    def flood() -> None:
        for name in floods:
            for _ in range(4):
                simulation.ask(name, 5)

    flood()
    await simulation.step(3)
    begun = len(simulation.order)
    quiet = simulation.ask("quiet", 2)
    for _ in range(30):
        flood()
        await simulation.step()
    assert quiet.given_at is not None
    # The rest of the turn, and the answers that were begun in it.
    assert quiet.given_at - quiet.asked_at <= 10 + 5
    assert simulation.order.index("quiet") - begun <= 8 * (1 + 10 // 5)


async def test_a_turn_of_no_time_lets_another_on_as_soon_as_running_answers_end() -> None:
    simulation = simulate(4, 1, slot_turn_s=0.0)
    for _ in range(50):
        simulation.ask("loud", 5)
    await simulation.step()
    simulation.ask("quiet", 1)
    await simulation.drain()
    assert simulation.order.index("quiet") == 4


@settings(max_examples=15, deadline=None)
@given(
    rooms=st.lists(st.sampled_from([1, 1, 1, 2, 4, 8]), min_size=2, max_size=16),
    lengths=st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=5),
)
def test_adapters_that_share_slots_never_take_more_than_there_is_and_large_ones_come_on_too(
    rooms: list[int], lengths: list[int]
) -> None:
    """Eight pages, and adapters of one to all of them."""

    async def run() -> None:
        simulation = simulate(1000, 8)
        for step in range(120):
            for number, room in enumerate(rooms):
                simulation.ask(f"a{number}", lengths[(step + number) % len(lengths)], room=room)
            await simulation.step()
            held = {asked.adapter: asked.room for asked in simulation.running.values()}
            assert sum(held.values()) <= 8
        # The turns and the longest answers of all that are before it, each alone.
        bound = len(rooms) * (10 + MOST_TOKENS + 2)
        for number in range(len(rooms)):
            given = [each.given_at for each in simulation.asked if each.adapter == f"a{number}"]
            times = sorted({0, 120, *(each for each in given if each is not None)})
            assert max(later - earlier for earlier, later in pairwise(times)) <= bound
        for asked in simulation.asked:
            assert asked.task is not None
            asked.task.cancel()
        await simulation.settle()

    asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(
    slots=st.integers(1, 3),
    adapters=st.integers(2, 7),
    lengths=st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=5),
)
def test_every_adapter_with_work_gets_a_slot_within_a_bound(
    slots: int, adapters: int, lengths: list[int]
) -> None:
    async def run() -> Simulation:
        simulation = simulate(1000, slots)
        for step in range(150):
            for number in range(adapters):
                simulation.ask(f"a{number}", lengths[(step + number) % len(lengths)])
            await simulation.step()
        for asked in simulation.asked:
            assert asked.task is not None
            asked.task.cancel()
        await simulation.settle()
        return simulation

    simulation = asyncio.run(run())
    # Each that is before it has its turn, and the answers that were begun in it end.
    bound = math.ceil(adapters / slots) * (10 + MOST_TOKENS + 1)
    for number in range(adapters):
        given = [each.given_at for each in simulation.asked if each.adapter == f"a{number}"]
        times = sorted({0, 150, *(each for each in given if each is not None)})
        assert max(later - earlier for earlier, later in pairwise(times)) <= bound


async def test_a_slot_is_taken_back_from_nobody_when_the_one_who_wanted_it_is_gone() -> None:
    simulation = simulate(8, 1, slot_turn_s=0.0)
    simulation.ask("loud", 20)
    await simulation.step()
    quiet = simulation.ask("quiet", 1)
    await simulation.step()
    more = simulation.ask("loud", 5)
    await simulation.step()
    assert more.given_at is None
    assert quiet.task is not None
    quiet.task.cancel()
    await simulation.step()
    assert more.given_at is not None
    await simulation.drain()


async def test_priority_moves_a_request_among_its_adapters_own_alone() -> None:
    simulation = simulate()
    simulation.ask("other", 3, slot=BASE)
    await simulation.settle()
    late, other = simulation.ask("bot", 1, slot=BASE), simulation.ask("other", 1, slot=BASE)
    urgent = [simulation.ask("bot", 1, slot=BASE, priority=5) for _ in range(3)]
    await simulation.drain()
    assert late.given_at is not None
    assert other.given_at is not None
    given = [each.given_at or 0 for each in urgent]
    assert max(given) < late.given_at
    assert other.given_at < max(given)


async def test_a_priority_is_worth_so_many_seconds_and_nobody_waits_for_ever() -> None:
    simulation = simulate()
    simulation.ask("bot", 1, slot=BASE)
    await simulation.settle()
    patient = simulation.ask("bot", 1, slot=BASE)
    for _ in range(40):
        simulation.ask("bot", 1, slot=BASE, priority=10)
        await simulation.step()
    assert patient.given_at is not None
    assert patient.given_at - patient.asked_at <= 12 + 10


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 5), st.integers(1, 5)),
        st.tuples(st.just("fail"), st.integers(0, 5), st.integers(1, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("step"), st.integers(0, 2), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, max_in_flight=st.integers(1, 3), slots=st.integers(1, 2))
def test_no_turn_is_lost_whoever_leaves_when(
    steps: list[tuple[str, int, int]], max_in_flight: int, slots: int
) -> None:
    async def run() -> None:
        limits = {"a3": Limit(max_concurrent=1)}
        simulation = simulate(max_in_flight, slots, slot_turn_s=2.0, adapter_limits=limits)
        asked: list[Asked] = []
        for what, number, tokens in steps:
            if what in ("ask", "fail"):
                slot = BASE if number == 0 else None
                asked.append(simulation.ask(f"a{number}", tokens, slot=slot, fails=what == "fail"))
            elif what == "cancel" and number < len(asked):
                task = asked[number].task
                assert task is not None
                task.cancel()
            elif what == "step":
                await simulation.step(number)
            check(simulation, max_in_flight, slots)
        await simulation.drain()
        assert simulation.scheduler.in_flight == simulation.scheduler.waiting == 0
        fresh = [simulation.ask("base", 1, slot=BASE) for _ in range(max_in_flight)]
        await simulation.settle()
        assert all(each.given_at == simulation.time for each in fresh)
        await simulation.drain()

    asyncio.run(run())


def check(simulation: Simulation, max_in_flight: int, slots: int) -> None:
    assert simulation.scheduler.in_flight <= max_in_flight
    held = {turn.slot for turn in simulation.running if turn.slot}
    assert len(held) <= slots
