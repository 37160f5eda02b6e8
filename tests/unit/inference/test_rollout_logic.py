"""The split, the judge and the shadow's comparison by themselves, with a clock that is told the time."""

from __future__ import annotations

import random

import pytest
from graft.rollout_policy import Rollout, RolloutLimits

from services.inference.engines.base import Delta, Finish
from services.inference.rollout.babble import TAIL_TOKENS, repeats
from services.inference.rollout.judge import Passed, Window, judge
from services.inference.rollout.observe import End, Observation
from services.inference.rollout.refusals import RefusalPatterns
from services.inference.rollout.shadow import agreement
from services.inference.rollout.split import choose

ALIAS = "namespaces/default/adapters/bot/aliases/production"
KEYS = [f"user-{number}" for number in range(4000)]


def chosen(*canaries: tuple[int, float]) -> dict[str, int | None]:
    return {key: choose(ALIAS, canaries, key) for key in KEYS}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Traffic:
    """A canary's window beside a stable version's, filled by hand."""

    def __init__(self, **limits: object) -> None:
        self.clock = Clock()
        self.limits = RolloutLimits(window_s=10.0, min_requests=10, **limits)  # type: ignore[arg-type]
        self.canary, self.stable = Window(), Window()

    def answer(
        self,
        window: Window,
        end: End = End.ANSWERED,
        *,
        first_s: float = 0.1,
        tokens: int = 20,
        token_s: float = 0.01,
        finish: Finish = Finish.STOP,
        text: str = "",
        circling: bool = False,
    ) -> None:
        patterns = RefusalPatterns(self.limits.refusal_patterns)
        seen = Observation(0, patterns, self.clock)
        before_s = self.clock.now_s
        window.enter(seen)
        seen.start(streamed=True, max_tokens=1000)
        self.clock.now_s += first_s
        for number in range(tokens):
            self.clock.now_s += token_s if number else 0.0
            token = number % 3 if circling else number
            last = finish if number == tokens - 1 else None
            seen.count(Delta("" if number else text, [token], finish=last))
        window.leave(seen, end)
        # Many are under way at once: the next one begins when this one did.
        self.clock.now_s = before_s + 0.001

    def judged(self) -> Passed | None:
        self.clock.now_s += 3.0
        return judge(self.limits, self.canary, self.stable, self.clock.now_s)


def test_a_key_gets_the_same_part_always_and_parts_are_as_large_as_their_weights() -> None:
    split = chosen((7, 5.0), (8, 20.0))
    assert split == chosen((7, 5.0), (8, 20.0))
    shares = {part: list(split.values()).count(part) / len(KEYS) for part in (7, 8, None)}
    assert shares == {
        7: pytest.approx(0.05, abs=0.015),
        8: pytest.approx(0.2, abs=0.03),
        None: pytest.approx(0.75, abs=0.03),
    }


def test_whoever_is_in_a_canary_stays_in_while_weights_grow() -> None:
    rng = random.Random(7)
    for _ in range(20):
        one, two = rng.uniform(0.1, 40), rng.uniform(0.1, 40)
        before = chosen((7, one), (8, two))
        after = chosen((7, one + rng.uniform(0, 10)), (8, two + rng.uniform(0, 9)))
        moved = [key for key in KEYS if before[key] is not None and before[key] != after[key]]
        assert moved == []


def test_three_canaries_share_without_overlap() -> None:
    split = list(chosen((7, 30.0), (8, 30.0), (9, 39.0)).values())
    shares = [split.count(part) / len(split) for part in (7, 8, 9, None)]
    assert shares == pytest.approx([0.3, 0.3, 0.39, 0.01], abs=0.03)


def test_another_canary_is_tried_by_other_people() -> None:
    seven = {key for key, part in chosen((7, 10.0)).items() if part}
    eight = {key for key, part in chosen((8, 10.0)).items() if part}
    assert len(seven & eight) < 0.5 * len(seven)


def test_an_alias_without_canaries_has_one_part() -> None:
    assert choose(ALIAS, (), "anybody") is None


def test_a_canary_that_is_as_the_stable_version_passes_no_limit() -> None:
    traffic = Traffic(
        max_error_rate=0.05, max_first_token_ratio=1.5, max_token_ratio=1.5, max_babble_rate=0.1,
        max_refusal_rate=0.1, max_length_ratio=2.0, max_first_token_s=1.0, max_token_s=0.1,
    )  # fmt: skip
    for _ in range(20):
        traffic.answer(traffic.canary)
        traffic.answer(traffic.stable)
    assert traffic.judged() is None


def test_too_few_requests_are_not_judged() -> None:
    traffic = Traffic(max_error_rate=0.05)
    for _ in range(9):
        traffic.answer(traffic.canary, End.FAILED)
    assert traffic.judged() is None
    traffic.answer(traffic.canary, End.FAILED)
    assert traffic.judged() is not None


def test_failures_pass_the_error_rate_and_what_fails_with_both_does_not() -> None:
    traffic = Traffic(max_error_rate=0.2)
    for number in range(20):
        traffic.answer(traffic.canary, End.FAILED if number % 2 else End.ANSWERED)
    assert traffic.judged() == Passed("max_error_rate", 0.5, 0.2, None, 20)
    for number in range(20):
        traffic.answer(traffic.stable, End.FAILED if number % 2 else End.ANSWERED)
    assert traffic.judged() is None


def test_what_callers_cancel_is_no_failure() -> None:
    traffic = Traffic(max_error_rate=0.05)
    for _ in range(20):
        traffic.answer(traffic.canary, End.CANCELLED)
        traffic.answer(traffic.canary)
    assert traffic.judged() is None


@pytest.mark.parametrize(
    ("limit", "bad"),
    [
        ({"max_first_token_s": 0.5}, {"first_s": 0.9}),
        ({"max_first_token_ratio": 3.0}, {"first_s": 0.9}),
        ({"max_token_s": 0.05}, {"token_s": 0.08}),
        ({"max_token_ratio": 4.0}, {"token_s": 0.08}),
        ({"max_length_ratio": 3.0}, {"tokens": 90}),
        ({"max_babble_rate": 0.5}, {"finish": Finish.LENGTH}),
        ({"max_babble_rate": 0.5}, {"circling": True, "tokens": 60}),
        (
            {"max_refusal_rate": 0.5, "refusal_patterns": ("(?i)i('m| am) sorry",)},
            {"text": " I am sorry, no."},
        ),
    ],
)
def test_each_limit_is_passed_by_what_it_is_for(
    limit: dict[str, object], bad: dict[str, object]
) -> None:
    traffic = Traffic(**limit)
    for _ in range(12):
        traffic.answer(traffic.stable)
        traffic.answer(traffic.canary, **bad)  # type: ignore[arg-type]
    passed = traffic.judged()
    assert passed is not None
    assert passed.limit == next(iter(limit))
    assert passed.observed > passed.allowed


def test_answers_that_do_not_even_begin_are_late_before_they_end() -> None:
    traffic = Traffic(max_first_token_s=2.0)
    for _ in range(10):
        seen = Observation(0, None, traffic.clock)
        seen.start(streamed=True, max_tokens=100)
        traffic.canary.enter(seen)
    traffic.clock.now_s += 1.0
    assert judge(traffic.limits, traffic.canary, traffic.stable, traffic.clock.now_s) is None
    passed = traffic.judged()
    assert passed is not None
    assert passed.limit == "max_first_token_s"


def test_an_answer_without_end_counts_before_its_end() -> None:
    traffic = Traffic(max_babble_rate=0.5)
    for _ in range(10):
        seen = Observation(0, None, traffic.clock)
        seen.start(streamed=True, max_tokens=100_000)
        traffic.canary.enter(seen)
        for _ in range(200):
            seen.count(Delta("ab", [1, 2]))
    passed = traffic.judged()
    assert passed is not None
    assert passed.limit == "max_babble_rate"


def test_what_is_older_than_the_window_counts_no_more() -> None:
    traffic = Traffic(max_error_rate=0.05)
    for _ in range(20):
        traffic.answer(traffic.canary, End.FAILED)
    traffic.clock.now_s += 20.0
    assert traffic.judged() is None


def test_a_pattern_that_takes_for_ever_is_given_up_and_the_others_go_on() -> None:
    patterns = RefusalPatterns(["(a|a)" * 30 + "b", "(?i)no"])
    assert not patterns.match("a" * 400)
    assert patterns.match("No, never")
    assert not patterns.match("a" * 400)


def test_repetition_is_seen_in_long_answers_only() -> None:
    assert repeats([1, 2, 3] * TAIL_TOKENS)
    assert repeats([9] * TAIL_TOKENS)
    assert not repeats([1, 2] * 5)
    assert not repeats(list(range(TAIL_TOKENS)))


def test_agreement_is_the_share_of_equal_positions() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.75
    assert agreement([1, 2], [1, 2, 3, 4]) == 0.5
    assert agreement([], []) == 1.0


def test_the_next_step_is_the_first_above_the_present_weight() -> None:
    rollout = Rollout(steps_percent=(5.0, 25.0, 100.0))
    assert [rollout.next_percent(now) for now in (1.0, 5.0, 30.0, 100.0)] == [
        5.0,
        25.0,
        100.0,
        None,
    ]
