"""API keys of the HTTP door: a file with one per line, read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.renewed import Renewed

from services.common.logs import get_logger

_BEARER = "bearer "


class ApiKeys:
    """Who may ask.

    Args:
        path: lines `KEY` or `NAME KEY`; the name is what logs call whoever shows the key. Empty lines and
            those that begin with # mean nothing.

    Raises:
        GraftError: INVALID_REQUEST, naming file and line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._renewed = Renewed((path,), self._read, self._tell)

    def caller(self, authorization: str) -> str:
        """The name of whoever shows this Authorization header; "" where its key has none.

        Raises:
            GraftError: UNAUTHENTICATED.
        """
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise _unauthenticated("The request has no API key")
        shown = _digest(authorization[len(_BEARER) :].strip())
        keys, _ = self._renewed.now()
        found: str | None = None
        # Every key is compared, so that the time says nothing about which one was near.
        for digest, name in keys:
            if hmac.compare_digest(digest, shown):
                found = name
        if found is None:
            raise _unauthenticated("The API key is not one of this service's")
        return found

    def _read(self) -> tuple[tuple[bytes, str], ...]:
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise self._bad(f"cannot be read ({error})") from None
        keys = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2:
                raise self._bad(f"has {len(words)} words in line {number}")
            keys.append((_digest(words[-1]), words[0] if len(words) == 2 else ""))
        if not keys:
            raise self._bad("holds no key")
        return tuple(keys)

    def _bad(self, what: str) -> GraftError:
        return GraftError(
            Reason.INVALID_REQUEST,
            f"The file of API keys {self._path} {what}",
            next_step="Write one key in each line, or a name, a space and a key.",
            path=self._path,
        )

    def _tell(self, error: GraftError | None) -> None:
        if error is None:
            get_logger().info("API keys renewed", file=str(self._path))
        else:
            get_logger().warning("renewed API keys not usable, the old stay", error=str(error))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthenticated(what: str) -> GraftError:
    return GraftError(
        Reason.UNAUTHENTICATED,
        what,
        next_step="Send one that the service's operator gave you: Authorization: Bearer KEY.",
    )
