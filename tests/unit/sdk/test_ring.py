"""Consistent hashing of keys to addresses."""

from __future__ import annotations

from collections import Counter

from graft.ring import Ring
from hypothesis import given
from hypothesis import strategies as st

KEYS = [f"default/bot-{number}" for number in range(2000)]
ADDRESSES = [f"10.0.0.{number}:50051" for number in range(10)]
addresses = st.sets(st.sampled_from(ADDRESSES), min_size=1)


def owners(ring: Ring) -> dict[str, str]:
    return {key: ring.order(key)[0] for key in KEYS}


@given(addresses, st.sampled_from(KEYS))
def test_everybody_is_in_the_order_once_and_every_client_has_the_same(
    some: set[str], key: str
) -> None:
    order = Ring(some).order(key)
    assert sorted(order) == sorted(some)
    assert Ring(sorted(some, reverse=True)).order(key) == order


def test_shares_are_about_equal() -> None:
    counts = Counter(owners(Ring(ADDRESSES)).values())
    mean = len(KEYS) / len(ADDRESSES)
    assert max(counts.values()) < 1.4 * mean
    assert min(counts.values()) > 0.6 * mean


@given(st.sampled_from(ADDRESSES))
def test_when_one_goes_only_its_keys_move_and_each_to_its_next(gone: str) -> None:
    whole = Ring(ADDRESSES)
    rest = Ring(address for address in ADDRESSES if address != gone)
    for key in KEYS[:200]:
        first, second, *_ = whole.order(key)
        assert rest.order(key)[0] == (second if first == gone else first)


@given(
    addresses,
    st.sampled_from(KEYS),
    st.dictionaries(st.sampled_from(ADDRESSES), st.integers(0, 50)),
    st.floats(1.0, 3.0),
)
def test_the_first_of_a_bounded_order_never_has_more_than_the_bound(
    some: set[str], key: str, load: dict[str, int], bound: float
) -> None:
    ring = Ring(some)
    order = ring.bounded(key, load, bound)
    assert sorted(order) == sorted(some)
    total = sum(load.get(address, 0) for address in some) + 1
    assert load.get(order[0], 0) <= bound * total / len(some)


def test_an_idle_ring_gives_a_key_to_its_owner() -> None:
    ring = Ring(ADDRESSES)
    for key in KEYS[:100]:
        assert ring.bounded(key, {}, 1.25) == ring.order(key)


def test_an_empty_ring_has_no_order() -> None:
    assert Ring(()).order("x") == Ring(()).bounded("x", {}, 1.25) == ()
