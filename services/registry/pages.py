"""Page sizes and page tokens (AIP-158). A token is opaque, signed, and good for the listing that gave it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json

from graft.errors import GraftError, Reason

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAC_BYTES = 16


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


class PageTokens:
    """Makes tokens and takes them back.

    Args:
        key: signs them; the same in all processes that answer for one catalogue.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, listing: str, parent: str, key: str | None, *terms: str) -> str:
        """The token for what follows key; empty for no key.

        Args:
            listing: the RPC.
            parent: of what it lists.
            key: of the page's last item, None for the last page.
            terms: what else the page was asked by, for example its filter.
        """
        if key is None:
            return ""
        text = key.encode()
        return base64.urlsafe_b64encode(self._mac(listing, parent, terms, text) + text).decode()

    def read(self, listing: str, parent: str, token: str, *terms: str) -> str | None:
        """The key in a token; None for an empty token.

        Args:
            listing: the RPC.
            parent: of what it lists.
            token: from its last answer.
            terms: as in make.

        Raises:
            GraftError: INVALID_PAGE_TOKEN, also for a token of another listing, parent or terms.
        """
        if not token:
            return None
        try:
            content = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        mac, text = content[:_MAC_BYTES], content[_MAC_BYTES:]
        # Base64 has spare bits: only the text that was given passes.
        is_whole = base64.urlsafe_b64encode(content).decode() == token
        if is_whole and hmac.compare_digest(mac, self._mac(listing, parent, terms, text)):
            return text.decode()
        raise GraftError(
            Reason.INVALID_PAGE_TOKEN,
            f"The page token was not given by {listing} of {parent}, or not for this filter and order",
            next_step="Pass next_page_token of the last answer with everything else as it was, or none.",
        )

    def _mac(self, listing: str, parent: str, terms: tuple[str, ...], text: bytes) -> bytes:
        scope = json.dumps([listing, parent, terms]).encode()
        return hmac.digest(self._key, scope + b"\0" + text, hashlib.sha256)[:_MAC_BYTES]
