"""A request's fields, as both doors check them: how one is refused, and what they have in common.

How tokens are drawn is in sampling.py.
"""

from __future__ import annotations

from graft.errors import GraftError, Reason

_MAX_PRIORITY = 100


def invalid_field(field: str, what: str, next_step: str) -> GraftError:
    """INVALID_REQUEST, naming the field."""
    return GraftError(Reason.INVALID_REQUEST, f"{field} {what}", next_step=next_step, field=field)


def checked_priority(value: int) -> int:
    """As in the contract.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    if abs(value) > _MAX_PRIORITY:
        raise invalid_field("priority", f"is {value}", f"Use -{_MAX_PRIORITY} to {_MAX_PRIORITY}.")
    return value
