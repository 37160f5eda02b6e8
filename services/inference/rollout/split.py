"""Which part of an alias a request gets: a function of the alias, its canaries' weights and the request's key.

Every endpoint decides the same, and remembers nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_SIZE_BYTES = 8


def place(salt: str, key: str) -> float:
    """Where a key lies, 0 to below 100, evenly spread; another salt puts it elsewhere."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=_SIZE_BYTES).digest()
    # 53 bits: what a float holds exactly, so that 100 itself never comes out.
    return (int.from_bytes(digest) >> 11) / 2**53 * 100.0


def choose(alias: str, canaries: Sequence[tuple[int, float]], key: str) -> int | None:
    """The canary that a key belongs to, by number; None for the alias' version.

    The first canary takes keys from the left end on, the second from the right, a third from where the
    first ends. So while one or two grow, whoever is in stays in. (For three that cannot be had without
    memory: each pair of them would have to grow towards each other.)

    Args:
        alias: its resource name.
        canaries: (number, percent) in the alias' order; together less than 100.
        key: of the session.
    """
    if not canaries:
        return None
    # With the canary's number: not always the same people try what is new.
    at = place(f"{alias} {canaries[0][0]}", key)
    first = canaries[0][1]
    if at < first:
        return canaries[0][0]
    if len(canaries) > 1 and at >= 100.0 - canaries[1][1]:
        return canaries[1][0]
    if len(canaries) > 2 and at < first + canaries[2][1]:
        return canaries[2][0]
    return None
