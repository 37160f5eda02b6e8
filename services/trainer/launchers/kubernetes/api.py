"""Single calls to the API server: plain mappings in and out, errors with their status, tries again where that helps."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from services.trainer.launchers.kubernetes.connect import Connection

Object = dict[str, Any]
Query = Sequence[tuple[str, str]]

MERGE_PATCH = "application/merge-patch+json"
_CALL_TIMEOUT_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_PASSING = frozenset({0, 401, 408, 429, 500, 502, 503, 504})
_READ_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object: where the API server has it."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The path of all of them, of one, or of a part of one."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = [root, "namespaces", namespace, self.plural, name, subresource]
        return "/".join([parts[0], *(quote(part, safe="") for part in parts[1:] if part)])


JOBS = Kind("batch/v1", "Job", "jobs")
JOBSETS = Kind("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets")
PODS = Kind("v1", "Pod", "pods")
EVENTS = Kind("v1", "Event", "events")
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps")
SECRETS = Kind("v1", "Secret", "secrets")
SERVICES = Kind("v1", "Service", "services")
KINDS = {one.name: one for one in (JOBS, JOBSETS, PODS, EVENTS, CONFIG_MAPS, SECRETS, SERVICES)}


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
        """Whether the same call may succeed later; a quota may be free again then."""
        return self.status in _PASSING or (self.status == 403 and "exceeded quota" in self.message)


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
    """Calls in one namespace.

    Args:
        connection: to the cluster.

    Attributes:
        calls: how many requests were sent, watches among them.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.calls = 0

    @property
    def namespace(self) -> str:
        """Kubernetes' namespace of all calls."""
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
            patience_s: gives up after this time; None never does.
            hindered: told of every error that is tried again.

        Raises:
            ApiError: that answer.
        """
        pauses, give_up_s = Pauses(), time.monotonic() + (patience_s or 0.0)
        while True:
            try:
                return await self._once(method, path, body, query, content_type)
            except ApiError as error:
                late = patience_s is not None and time.monotonic() > give_up_s
                if not error.passing or late:
                    raise
                if hindered is not None:
                    hindered(error)
                if error.status == 401:
                    with suppress(Exception):
                        await self._connection.renew()
                await pauses.wait(error)

    async def text(self, path: str, query: Query = ()) -> str:
        """What a call that does not answer with an object says. Raises ApiError."""
        async with aclosing(self._open("GET", path, None, query, "", _CALL_TIMEOUT_S)) as parts:
            return (b"".join([part async for part in parts])).decode("utf-8", "replace")

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
        async with aclosing(self._open("GET", path, None, query, "", None, silence_s)) as parts:
            async for part in parts:
                *whole, rest = (rest + part).split(b"\n") if b"\n" in part else (rest + part,)
                for line in whole:
                    if line.strip():
                        yield _json(line)

    async def _once(
        self, method: str, path: str, body: Object | None, query: Query, content_type: str
    ) -> Object:
        timeout_s = _CALL_TIMEOUT_S
        async with aclosing(
            self._open(method, path, body, query, content_type, timeout_s)
        ) as parts:
            return _json(b"".join([part async for part in parts]))

    async def _open(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: Query,
        content_type: str,
        timeout_s: float | None,
        silence_s: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        self.calls += 1
        headers = {"Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10.0, sock_read=silence_s)
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
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from None
        try:
            if response.status >= 300:
                raise _error(response.status, await response.read(), response.headers)
            async for part in response.content.iter_chunked(_READ_BYTES):
                yield part
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from None
        finally:
            response.close()


def _unreachable(error: BaseException) -> ApiError:
    said = str(error) or type(error).__name__
    return ApiError(0, "Unreachable", f"The Kubernetes API cannot be reached: {said}")


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
