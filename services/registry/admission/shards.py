"""Compares a base's shards with their index: every tensor in exactly the file that it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from graft.bases import is_weights

from services.registry.admission.base_files import INDEX
from services.registry.admission.json_text import NotJsonError, read_object
from services.registry.errors import refused

CHECK = "shards"
_SAVE_AGAIN = "Commit all shards and the index of one save."
# A key, a value and what is around them, for every tensor.
_ITEMS_PER_TENSOR = 2
_FURTHER_ITEMS = 1000


class ShardIndex:
    """Which shard every tensor is in, and which tensors were seen there.

    Args:
        text: model.safetensors.index.json.
        shards: names of the weights files there are.
        max_tensors: how many tensors it may name.

    Raises:
        GraftError: VERSION_REFUSED.
    """

    def __init__(self, text: bytes, shards: Collection[str], max_tensors: int) -> None:
        self._shard_of = _weight_map(text, max_tensors)
        self._seen = 0
        named = set(self._shard_of.values())
        for shard in sorted(named - set(shards)):
            raise refused(
                CHECK, f"{INDEX} names {ascii(shard)[:120]}, which is missing", _SAVE_AGAIN
            )
        for shard in sorted(set(shards) - named):
            raise refused(
                CHECK, f"{shard} is not in {INDEX}", "Leave it out: no loader reads it.", path=shard
            )

    def check(self, shard: str, names: Iterable[str]) -> None:
        """Holds one shard's tensors against it.

        Raises:
            GraftError: VERSION_REFUSED, naming the tensor.
        """
        for name in names:
            place = self._shard_of.get(name)
            if place != shard:
                where = f"says that it is in {place}" if place else "does not name it"
                raise refused(
                    CHECK,
                    f"tensor {name}: it is in {shard}, but {INDEX} {where}",
                    _SAVE_AGAIN,
                    tensor=name,
                    path=shard,
                )
            self._seen += 1

    def check_complete(self, seen: Collection[str]) -> None:
        """After all shards: was every tensor of the index there?

        Raises:
            GraftError: VERSION_REFUSED, naming a tensor.
        """
        if self._seen == len(self._shard_of):
            return
        name = min(set(self._shard_of) - set(seen))
        raise refused(
            CHECK,
            f"tensor {ascii(name)[1:-1][:200]}: {INDEX} says that it is in "
            f"{self._shard_of[name]}, but it is not there",
            _SAVE_AGAIN,
            tensor=ascii(name)[1:-1][:200],
        )


def _weight_map(text: bytes, max_tensors: int) -> Mapping[str, str]:
    try:
        index = read_object(text, _ITEMS_PER_TENSOR * max_tensors + _FURTHER_ITEMS)
    except NotJsonError as error:
        raise refused(CHECK, f"{INDEX}: {error}", _SAVE_AGAIN, path=INDEX) from None
    found: Any = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise refused(CHECK, f"{INDEX}: it has no weight_map", _SAVE_AGAIN, path=INDEX)
    for name, shard in found.items():
        if not isinstance(shard, str) or not is_weights(shard):
            raise refused(
                CHECK,
                f"{INDEX}: the file of {ascii(name)[:200]} is {ascii(shard)[:120]}, which is not "
                "safetensors",
                _SAVE_AGAIN,
                path=INDEX,
            )
    return found
