"""Which fields each listing can be filtered and sorted by."""

from __future__ import annotations

from dataclasses import dataclass

from services.registry.find.order import Order
from services.registry.find.tree import FieldKind, Fields, Node

_SAID: Fields = {
    "description": FieldKind.TEXT,
    "labels": FieldKind.LABELS,
    "create_time": FieldKind.TIME,
    "actor": FieldKind.TEXT,
    "state": FieldKind.STATE,
}
ADAPTER_FIELDS: Fields = {
    "name": FieldKind.TEXT,
    "base": FieldKind.TEXT,
    "latest_version": FieldKind.NUMBER,
    **_SAID,
}
BASE_FIELDS: Fields = {
    "name": FieldKind.TEXT,
    "source": FieldKind.TEXT,
    "fingerprint": FieldKind.TEXT,
    "latest_version": FieldKind.NUMBER,
    **_SAID,
}
VERSION_FIELDS: Fields = {
    "name": FieldKind.TEXT,
    "number": FieldKind.NUMBER,
    "base": FieldKind.TEXT,
    "method": FieldKind.TEXT,
    "kind": FieldKind.TEXT,
    "rank": FieldKind.NUMBER,
    "size_bytes": FieldKind.NUMBER,
    "digest": FieldKind.TEXT,
    "fingerprint": FieldKind.TEXT,
    "metrics": FieldKind.METRICS,
    "data_digest": FieldKind.TEXT,
    "job": FieldKind.TEXT,
    **_SAID,
}
MODEL_ORDERS = ("name", "create_time")
# Numbers mean something within one adapter or base only.
VERSION_ORDERS = ("number", "create_time", "rank", "size_bytes", "metrics")
NAMESPACE_ORDERS = ("name", "create_time", "rank", "size_bytes", "metrics")
BY_NAME = Order("name")
NEWEST_NUMBER = Order("number", descending=True)
NEWEST = Order("create_time", descending=True)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a page is asked for.

    Attributes:
        parent: "namespaces/{ns}", or of versions the adapter or base, or ".../adapters/-".
        limit: how many items the page has at most.
        where: what must hold of each.
        order: how they are sorted.
        show_deleted: whether what is deleted is there too. A filter that speaks of the state decides
            that itself.
        after: where the page begins, from the one before.
    """

    parent: str
    limit: int
    where: Node | None
    order: Order
    show_deleted: bool = False
    after: str | None = None

    @property
    def namespace(self) -> str:
        """The namespace's id."""
        return self.parent.split("/")[1]
