"""Page sizes and page tokens (AIP-158). A token is opaque, and good for the listing that gave it."""

from __future__ import annotations

import base64
import binascii
import json
import re

from graft.errors import GraftError, Reason

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")


def page_limit(page_size: int) -> int:
    """How many items a page has at most.

    Raises:
        GraftError: INVALID_REQUEST for a negative size.
    """
    if page_size < 0:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"page_size is {page_size}",
            next_step="Use 1 to 1000, or 0 for 100.",
        )
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def make_token(listing: str, parent: str, key: str | None) -> str:
    """The token for what follows key; empty for no key."""
    if key is None:
        return ""
    return base64.urlsafe_b64encode(json.dumps([listing, parent, key]).encode()).decode()


def read_token(listing: str, parent: str, token: str, is_number: bool = False) -> str | None:
    """The key in a token; None for an empty token.

    Args:
        listing: the RPC.
        parent: of what it lists.
        token: from its last answer.
        is_number: whether its keys are numbers.

    Raises:
        GraftError: INVALID_PAGE_TOKEN.
    """
    if not token:
        return None
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        content = None
    match content:
        case [str(of), str(under), str(key)] if (of, under) == (listing, parent):
            if not is_number or _NUMBER.fullmatch(key):
                return key
    raise GraftError(
        Reason.INVALID_PAGE_TOKEN,
        f"The page token was not given by {listing} of {parent}",
        next_step="Pass next_page_token of the last answer, with the same parent, or none.",
    )
