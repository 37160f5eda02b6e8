"""The registry's own errors, worded once."""

from __future__ import annotations

from graft.errors import GraftError, Reason

from services.registry.domain import Life

_MISSING = {
    "adapter": (Reason.ADAPTER_NOT_FOUND, "Create it first, or list what there is with `graft adapters list`."),
    "base": (Reason.BASE_NOT_FOUND, "Record the base first with CreateBase; `graft train` does it."),
    "version": (Reason.VERSION_NOT_FOUND, "List its versions with `graft adapters versions`."),
    "alias": (Reason.ALIAS_NOT_FOUND, "Set it with `graft adapters promote`."),
}  # fmt: skip

_GROUP = {"adapter": "adapters", "base": "bases", "version": "adapters"}


def not_found(kind: str, name: str) -> GraftError:
    """{KIND}_NOT_FOUND for "adapter", "base", "version" or "alias"."""
    reason, next_step = _MISSING[kind]
    return GraftError(reason, f"There is no {kind} {name}", next_step=next_step, resource=name)


def deleted(kind: str, name: str, life: Life) -> GraftError:
    """DELETED, for "adapter", "base" or "version"."""
    if life.purge_time is not None:
        return GraftError(
            Reason.DELETED,
            f"{name} was purged at {life.purge_time:%Y-%m-%d %H:%M} UTC",
            next_step="It cannot come back: make a new one under another name.",
            resource=name,
        )
    return GraftError(
        Reason.DELETED,
        f"{name} was deleted at {life.delete_time:%Y-%m-%d %H:%M} UTC",
        next_step=f"Bring it back with Undelete{kind.capitalize()} (`graft {_GROUP[kind]} undelete`), "
        "or use another.",
        resource=name,
    )


def invalid(message: str, next_step: str, **metadata: object) -> GraftError:
    """INVALID_REQUEST."""
    return GraftError(Reason.INVALID_REQUEST, message, next_step=next_step, **metadata)


def refused(
    check: str, message: str, next_step: str, tensor: str = "", **metadata: object
) -> GraftError:
    """VERSION_REFUSED by the check of that name, for the tensor where one is at fault."""
    if tensor:
        metadata["tensor"] = tensor
    return GraftError(Reason.VERSION_REFUSED, message, next_step=next_step, check=check, **metadata)
