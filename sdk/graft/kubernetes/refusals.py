"""What an API server's refusal means to somebody at a command line, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from graft.errors import GraftError, Reason
from graft.kubernetes.api import ApiError


class Meaning(NamedTuple):
    """What a status means to a command: the reason, the message before the server's words, the next step."""

    reason: Reason
    message: str
    next_step: str


_UNREACHABLE = (
    "See whether `kubectl version` works with the same kubeconfig and context; a VPN or a login may "
    "have ended."
)
_UNWELL = "Try again; if it stays so, see `kubectl get --raw /readyz?verbose`."
_LOG_IN = "Log in again, as your cluster's provider says, then `kubectl auth whoami`."


def in_words(
    error: ApiError, what: str, meanings: Mapping[int, Meaning] | None = None
) -> GraftError:
    """The error for a person.

    Args:
        what: was asked for, for example "Job bot".
        meanings: of statuses; {what} in a message is replaced.
    """
    if error.status == 0:
        return GraftError(Reason.UNAVAILABLE, error.message, next_step=_UNREACHABLE)
    known = (meanings or {}).get(error.status)
    if known is None and error.status == 401:
        known = Meaning(
            Reason.PERMISSION_DENIED,
            "The Kubernetes API does not accept these credentials",
            _LOG_IN,
        )
    if known is None:
        said = f"The Kubernetes API answered {error.status} for {{what}}"
        known = Meaning(Reason.UNAVAILABLE, said, _UNWELL)
    message = known.message.replace("{what}", what)
    return GraftError(known.reason, f"{message}: {error.message}", next_step=known.next_step)
