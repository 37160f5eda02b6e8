"""What a database's errors mean to callers; driver errors end here."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionFree

# What a driver raises when the database is not there, is full, or went away.
FAILURES = (DBAPIError, NoConnectionFree, OSError, TimeoutError)
# These say that a statement is wrong: a defect of ours, which no waiting mends.
DEFECTS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
_DISK_FULL = "53100"


def is_dead(error: BaseException) -> bool:
    """Whether the connection is gone, with whatever it had not committed."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError | TimeoutError)


class MaybeStoredError(Exception):
    """The connection went away during COMMIT: the changes are stored, or they are not."""


def as_graft_error(error: Exception) -> Exception:
    """The error to raise to callers: GraftError where the database is at fault, else as it is."""
    if isinstance(error, MaybeStoredError):
        return GraftError(
            Reason.UNAVAILABLE,
            "The registry's database went away while the change was being stored: it is stored, "
            f"or nothing of it is ({_said(error.__cause__ or error)})",
            next_step="Look whether it is there, or send it again with the same request_id.",
        )
    if isinstance(error, NoConnectionFree):
        return GraftError(
            Reason.OVERLOADED,
            "All connections of the registry to its database are busy; nothing was changed",
            next_step="Try again later; GRAFT_REGISTRY_DATABASE_CONNECTIONS sets how many it has.",
        )
    if isinstance(error, DEFECTS) or not isinstance(error, FAILURES):
        return error
    said = _said(error)
    if _is_full(error):
        return GraftError(
            Reason.STORAGE_FULL,
            f"The registry's database cannot grow ({said}); nothing was changed",
            next_step="Free space where the database lies, then try again.",
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"The registry's database failed ({said}); nothing was changed",
        next_step="Try again; if it stays so, look at the registry's log and its disk.",
    )


def _is_full(error: Exception) -> bool:
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) == _DISK_FULL or "disk is full" in str(original)


def _said(error: BaseException) -> str:
    original = error.orig if isinstance(error, DBAPIError) else error
    # SQLAlchemy puts the driver's class before the driver's words.
    cause = getattr(original, "__cause__", None) or original
    return str(cause) or type(cause).__name__
