"""The one client of a Kubernetes API server: plain mappings in and out, errors with their status.

It tries again where that helps and as long as its caller wants. What an answer means to people is said
elsewhere: refusals.py for the command line, the launcher's own words for jobs.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from graft.kubernetes.kinds import Kind

if TYPE_CHECKING:
    from graft.kubernetes.connect import Connection

Object = dict[str, Any]
Query = Sequence[tuple[str, str]]

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_CALL_TIMEOUT_S = 30.0
_PAGE = "500"
_NOT_FOUND = 404
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_PASSING = frozenset({0, 401, 408, 429, 500, 502, 503, 504})
# A quota that is used up; a TrainJob whose runtime Kubeflow's webhook has not heard of yet.
_PASSING_MESSAGES = ("exceeded quota", "must be created before the TrainJob")
_READ_BYTES = 2**16


class ApiError(Exception):
    """What the API server answered, or why it could not be asked.

    Args:
        status: of HTTP; 0 where there was no answer.
        reason: the Status' reason, for example "AlreadyExists".
        message: in words.
        retry_after_s: when to try again, where it said so.
    """

    def __init__(
        self, status: int, reason: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later: a quota is free again, a webhook has seen more."""
        if self.status in _PASSING:
            return True
        return any(one in self.message for one in _PASSING_MESSAGES)


class Pauses:
    """Ever longer pauses between tries, at random, so that many do not come back together."""

    def __init__(self, longest_s: float = _LONGEST_PAUSE_S) -> None:
        self._next_s, self._longest_s = _FIRST_PAUSE_S, longest_s

    def reset(self) -> None:
        """It worked: the next pause is short again."""
        self._next_s = _FIRST_PAUSE_S

    async def wait(self, error: ApiError | None = None) -> None:
        """Waits, at least as long as the server asked for."""
        pause_s = random.uniform(self._next_s / 2, self._next_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
        if error is not None and error.retry_after_s is not None:
            pause_s += error.retry_after_s
        await asyncio.sleep(pause_s)


class Api:
    """Calls to one cluster.

    Args:
        connection: to the cluster.
        timeout_s: of one call.

    Attributes:
        calls: how many requests were sent, watches among them.
    """

    def __init__(self, connection: Connection, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self.calls = 0

    @property
    def namespace(self) -> str:
        """Kubernetes' namespace that the connection is for."""
        return self._connection.namespace

    async def close(self) -> None:
        """Closes the connections."""
        await self._connection.client.close()

    async def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Query = (),
        *,
        content_type: str = "application/json",
        patience_s: float | None = None,
        hindered: Callable[[ApiError], None] | None = None,
    ) -> Object:
        """Calls until there is an answer that trying again would not change.

        Args:
            patience_s: gives up after this time; 0 tries once, None never gives up.
            hindered: told of every error that is tried again.

        Raises:
            ApiError: that answer.
        """
        pauses, give_up_s = Pauses(), time.monotonic() + (patience_s or 0.0)
        while True:
            try:
                return await self._once(method, path, body, query, content_type)
            except ApiError as error:
                late = patience_s is not None and time.monotonic() >= give_up_s
                if not error.passing or late:
                    raise
                if hindered is not None:
                    hindered(error)
                if error.status == 401:
                    with suppress(Exception):
                        await self._connection.renew()
                await pauses.wait(error)

    async def get(self, path: str) -> Object:
        """The object at a path; asked for once. Raises ApiError."""
        return await self.call("GET", path, patience_s=0.0)

    async def items(
        self, path: str, query: Query = (), *, patience_s: float | None = 0.0
    ) -> list[Object]:
        """All objects of a list, page by page. Raises ApiError."""
        found: list[Object] = []
        token = ""
        while True:
            paged = [*query, ("limit", _PAGE), *([("continue", token)] if token else [])]
            page = await self.call("GET", path, query=paged, patience_s=patience_s)
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    async def serves(self, kind: Kind, *, patience_s: float | None = 0.0) -> bool:
        """Whether the cluster has a kind, by API discovery; everybody may ask. Raises ApiError."""
        try:
            found = await self.call("GET", kind.root, patience_s=patience_s)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            return False
        return any(one.get("name") == kind.plural for one in found.get("resources") or [])

    async def text(self, path: str, query: Query = ()) -> str:
        """What a call that does not answer with an object says. Raises ApiError."""
        return (await self._whole("GET", path, None, query, "")).decode("utf-8", "replace")

    async def lines(
        self, path: str, query: Query, silence_s: float
    ) -> AsyncGenerator[Object, None]:
        """The objects of an answer that goes on, one per line; ends when the server ends it.

        Args:
            silence_s: longest time between two of them.

        Raises:
            ApiError: with status 0 when the connection broke.
        """
        rest = b""
        async with aclosing(self._open("GET", path, None, query, "", silence_s)) as parts:
            async for part in parts:
                *whole, rest = (rest + part).split(b"\n") if b"\n" in part else (rest + part,)
                for line in whole:
                    if line.strip():
                        yield _json(line)

    async def _once(
        self, method: str, path: str, body: Object | None, query: Query, content_type: str
    ) -> Object:
        return _json(await self._whole(method, path, body, query, content_type))

    async def _whole(
        self, method: str, path: str, body: Object | None, query: Query, content_type: str
    ) -> bytes:
        async with aclosing(self._open(method, path, body, query, content_type)) as parts:
            return b"".join([part async for part in parts])

    async def _open(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: Query,
        content_type: str,
        silence_s: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The parts of an answer; with silence_s it may go on for ever."""
        import aiohttp

        self.calls += 1
        headers = {"Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        whole_s = None if silence_s else self._timeout_s
        timeout = aiohttp.ClientTimeout(
            total=whole_s, sock_connect=min(10.0, self._timeout_s), sock_read=silence_s
        )
        broken = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
        try:
            response = await self._connection.client.call_api(
                path,
                method,
                query_params=list(query),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
        except broken as error:
            raise self._unreachable(error) from None
        try:
            if response.status >= 300:
                raise _error(response.status, await response.read(), response.headers)
            async for part in response.content.iter_chunked(_READ_BYTES):
                yield part
        except broken as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def _unreachable(self, error: BaseException) -> ApiError:
        said = str(error) or f"no answer within {self._timeout_s:g} s"
        host = self._connection.client.configuration.host
        return ApiError(0, "Unreachable", f"The Kubernetes API at {host} cannot be reached: {said}")


def _json(data: bytes) -> Object:
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError(0, "Malformed", f"The Kubernetes API answered {data[:80]!r}, not an object")
    return parsed


def _error(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """The error of an answer; its body is a Status, or what a proxy before the server says."""
    try:
        told = json.loads(body)
        reason, message = str(told.get("reason", "")), str(told.get("message", ""))
        hinted = (told.get("details") or {}).get("retryAfterSeconds")
    except (ValueError, AttributeError):
        reason, message, hinted = "", body[:300].decode("utf-8", "replace"), None
    after = headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdigit() else hinted
    return ApiError(status, reason, message or f"HTTP {status}", retry_after_s)


def status_error(status: Object) -> ApiError:
    """The error in a watch's event."""
    return ApiError(
        int(status.get("code", 500)), str(status.get("reason", "")), str(status.get("message", ""))
    )
