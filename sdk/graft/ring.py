"""Consistent hashing: which of several addresses a key belongs to, and which come next.

When an address goes, only its keys move; when one comes, it takes its share and nobody else's keys move.
Knows nothing of channels.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

# So many places on the ring that the largest of ten shares is about a tenth above the mean.
_POINTS = 160


class Ring:
    """Addresses on a circle, each at many places; a key belongs to the next one around.

    Args:
        addresses: their order does not matter.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = tuple(sorted(set(addresses)))
        places = sorted(
            (_place(f"{address}#{number}"), address)
            for address in self.addresses
            for number in range(_POINTS)
        )
        self._places = [place for place, _ in places]
        self._owners = [address for _, address in places]

    def order(self, key: str) -> Sequence[str]:
        """All addresses, the key's own first, then those that take it over, in turn."""
        if not self._owners:
            return ()
        begin = bisect_right(self._places, _place(key))
        around = self._owners[begin:] + self._owners[:begin]
        return tuple(dict.fromkeys(around))

    def bounded(self, key: str, load: Mapping[str, int], bound: float) -> Sequence[str]:
        """As order(), but those that have too much already come last.

        Args:
            load: requests in flight, by address.
            bound: how much of the mean load, counting one more request, an address may have;
                at least 1.
        """
        order = self.order(key)
        if not order:
            return ()
        total = sum(load.get(address, 0) for address in order) + 1
        most = math.ceil(bound * total / len(order))
        free = [address for address in order if load.get(address, 0) < most]
        return (*free, *(address for address in order if address not in set(free)))


def _place(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
