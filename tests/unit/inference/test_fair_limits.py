"""What one adapter or namespace may use, what the queue refuses, and when it says so."""

from __future__ import annotations

import math

import pytest
from graft.errors import GraftError, Reason
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.inference.scheduling.limits import Limit, TokenBucket, limit_of
from services.inference.scheduling.scheduler import SchedulingOptions
from tests.support.queueing import Asked, Simulation

BASE = ""


def simulate(max_in_flight: int = 1, slots: int = 8, **options: object) -> Simulation:
    values = {"slot_timeout_s": math.inf, "rate_limit_wait_s": math.inf, **options}
    return Simulation(SchedulingOptions(max_in_flight, **values), slots)  # type: ignore[arg-type]


def refused(asked: Asked) -> GraftError:
    """Why."""
    assert asked.task is not None
    assert asked.task.done(), "it waits"
    error = asked.task.exception()
    assert isinstance(error, GraftError)
    assert error.next_step
    return error


async def test_an_adapter_at_its_limit_waits_and_others_do_not() -> None:
    simulation = simulate(8, adapter_limits={"bot": Limit(max_concurrent=2)})
    bots = [simulation.ask("bot", 5, slot=BASE) for _ in range(4)]
    other = simulation.ask("other", 5, slot=BASE)
    await simulation.settle()
    assert [each.given_at for each in bots] == [0, 0, None, None]
    assert other.given_at == 0
    await simulation.step(5)
    assert [each.given_at for each in bots] == [0, 0, 5, 5]
    await simulation.drain()


async def test_a_namespaces_limit_holds_for_all_of_its_adapters_together() -> None:
    simulation = simulate(8, namespace_limits={"*": Limit(max_concurrent=2)})
    mine = [simulation.ask(f"a{number}", 5, slot=BASE, namespace="mine") for number in range(4)]
    other = simulation.ask("a0", 5, slot=BASE, namespace="other")
    await simulation.settle()
    assert [each.given_at for each in mine] == [0, 0, None, None]
    assert other.given_at == 0
    await simulation.drain()


async def test_tokens_per_second_hold_over_time_and_count_prompts_and_answers() -> None:
    limits = {"bot": Limit(tokens_per_s=4, burst_tokens=20)}
    simulation = simulate(8, adapter_limits=limits)
    for _ in range(100):
        simulation.ask("bot", 3, slot=BASE, prompt=5)
    await simulation.settle()
    for step in range(1, 101):
        await simulation.step()
        # One request more than there is may be begun: its tokens are known when it has ended.
        assert simulation.served["bot"] <= 20 + 4 * step + 8
    assert simulation.served["bot"] >= 4 * 100 - 8


async def test_a_token_rate_that_is_used_up_for_long_is_refused_with_when_to_come_back() -> None:
    limits = {"bot": Limit(tokens_per_s=1, burst_tokens=10)}
    simulation = simulate(8, adapter_limits=limits, rate_limit_wait_s=5.0)
    simulation.ask("bot", 60, slot=BASE)
    await simulation.step(20)
    late = simulation.ask("bot", 1, slot=BASE)
    await simulation.settle()
    error = refused(late)
    assert error.reason is Reason.RATE_LIMITED
    # 61 tokens are spoken for, 10 were there, and 20 have come.
    assert error.retry_after_s == pytest.approx(31, abs=2)
    assert simulation.scheduler.waiting == 0
    await simulation.drain()


async def test_what_a_limit_kept_back_is_not_made_up_for_at_others_cost() -> None:
    limits = {"slow": Limit(max_concurrent=1)}
    simulation = simulate(2, adapter_limits=limits)
    for _ in range(100):
        simulation.ask("slow", 4, slot=BASE)
        simulation.ask("fast", 4, slot=BASE)
    await simulation.settle()
    await simulation.step(100)
    assert abs(simulation.served["slow"] - simulation.served["fast"]) <= 20


@given(
    rate=st.floats(0.5, 50),
    burst=st.floats(1, 100),
    moves=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 40)), max_size=40),
)
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate(
    rate: float, burst: float, moves: list[tuple[float, float]]
) -> None:
    bucket, now_s, taken, largest = TokenBucket(rate, burst, 0.0), 0.0, 0.0, 0.0
    for passed_s, tokens in moves:
        now_s += passed_s
        wait_s = bucket.wait_s(now_s)
        if wait_s:
            now_s += wait_s
            assert not bucket.wait_s(now_s)
        bucket.take(tokens, now_s)
        taken, largest = taken + tokens, max(largest, tokens)
        assert taken <= burst + rate * now_s + largest + 1e-6


def test_a_limit_of_its_own_leaves_the_rest_to_everybodys() -> None:
    limits = {"*": Limit(max_concurrent=4, tokens_per_s=9), "bot": Limit(tokens_per_s=1)}
    assert limit_of(limits, "bot") == Limit(max_concurrent=4, tokens_per_s=1)
    assert limit_of(limits, "other") == Limit(max_concurrent=4, tokens_per_s=9)
    assert limit_of({}, "bot") == Limit()


@pytest.mark.parametrize(
    "wrong", [{"weight": 0}, {"max_concurrent": 0}, {"tokens_per_s": -1}, {"tokens": 5}]
)
def test_a_limit_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limit.model_validate(wrong)


async def test_a_full_queue_refuses_the_last_of_the_longest_and_says_when_to_come_back() -> None:
    simulation = simulate(1, max_waiting=10)
    for _ in range(30):
        simulation.ask("loud", 5, slot=BASE)
    quiet = [simulation.ask("quiet", 1, slot=BASE) for _ in range(3)]
    await simulation.settle()
    assert simulation.scheduler.waiting == 10
    gone = [each for each in simulation.asked if each.task is not None and each.task.done()]
    assert {each.adapter for each in gone} == {"loud"}
    for each in gone:
        error = refused(each)
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after_s
    await simulation.drain()
    assert all(each.ended for each in quiet)


async def test_an_adapter_may_have_a_shorter_queue_of_its_own() -> None:
    simulation = simulate(1, adapter_limits={"bot": Limit(max_waiting=2)})
    bots = [simulation.ask("bot", 1, slot=BASE) for _ in range(5)]
    others = [simulation.ask("other", 1, slot=BASE) for _ in range(5)]
    await simulation.drain()
    assert [each.ended for each in bots] == [True, True, True, False, False]
    assert all(each.ended for each in others)
    assert refused(bots[-1]).reason is Reason.OVERLOADED


async def test_a_deadline_that_the_queues_pace_cannot_meet_is_refused_at_once() -> None:
    simulation = simulate()
    for _ in range(30):
        simulation.ask("bot", 5, slot=BASE)
    await simulation.settle()
    hopeful = simulation.ask("bot", 5, slot=BASE, within=1000.0)
    await simulation.step(60)
    assert hopeful.task is not None
    assert not hopeful.task.done()
    # A request takes about 5 steps, and some 18 are ahead.
    soon = simulation.ask("bot", 5, slot=BASE, within=30.0)
    later = simulation.ask("bot", 5, slot=BASE, within=200.0)
    await simulation.settle()
    error = refused(soon)
    assert error.reason is Reason.DEADLINE_EXCEEDED
    assert error.retry_after_s
    await simulation.drain()
    assert later.ended
    assert hopeful.ended
    assert soon.given_at is None


async def test_another_adapters_queue_makes_no_deadline_hopeless() -> None:
    simulation = simulate()
    for _ in range(200):
        simulation.ask("loud", 5, slot=BASE)
    await simulation.step(60)
    quiet = simulation.ask("quiet", 5, slot=BASE, within=30.0)
    await simulation.step(30)
    assert quiet.ended


async def test_what_expires_in_the_queue_never_gets_a_turn() -> None:
    simulation = simulate()
    simulation.ask("bot", 50, slot=BASE)
    await simulation.settle()
    late = simulation.ask("bot", 1, slot=BASE, within=0.0)
    await simulation.settle()
    simulation.time += 1
    await simulation.drain()
    assert refused(late).reason is Reason.DEADLINE_EXCEEDED
    assert late.given_at is None


async def test_no_slot_in_time_is_refused_with_when_to_come_back() -> None:
    simulation = simulate(8, 1, slot_timeout_s=0.0)
    simulation.ask("loud", 50)
    await simulation.settle()
    quiet = simulation.ask("quiet", 1)
    await simulation.settle()
    error = refused(quiet)
    assert error.reason is Reason.OVERLOADED
    assert error.retry_after_s
    await simulation.drain()
