"""Brings a result into the registry: its base and adapter, its files by digest, one version, and its alias.

Before the training it only looks: an attempt that fails leaves nothing there.

Every step may be repeated: the registry knows files by digest and the commit by its request id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TypeVar

import grpc
from graft.blobs import BlobClient
from graft.channel import call_metadata, rpc_errors
from graft.common.v1.common_pb2 import File
from graft.conditions import parse_condition
from graft.digests import digest_message
from graft.errors import GraftError, NotFoundError, Reason
from graft.keys import PrivateKey
from graft.leases import LeaseKeeper
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from graft.signatures import sign

from services.trainer.run.exits import RegistryRefusedError
from services.trainer.run.result import Result

_PEER = "the registry"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_ALIAS_ATTEMPTS = 10
T = TypeVar("T")
Guard = Callable[[], AbstractContextManager[None]]


class Publisher:
    """Writes to one registry.

    Args:
        channel: open, to the registry.
        actor: who asks, for the alias' history.
        patience_s: how long a registry that cannot be reached is tried again.
        log: takes a line for people.
        check_stop: raises when the attempt shall end rather than try again.
        waiting: told what is waited for, and "" when it is there; log is when left out.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        actor: str,
        patience_s: float,
        log: Callable[[str], None],
        check_stop: Callable[[], None],
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        self._channel = channel
        self._registry = RegistryServiceStub(channel)
        self._blobs = BlobClient(channel, actor=actor)
        self._metadata = call_metadata(actor=actor)
        self._actor = actor
        self._patience_s = patience_s
        self._log = log
        self._check_stop = check_stop
        self._waiting = waiting or (lambda what: log(what) if what else None)

    async def check(self, base: pb.Base, adapter: str) -> str:
        """Makes sure that base and adapter can be what prepare() makes them, before any time is spent.

        Returns the name of the base's version that is trained on; "" where it is none.

        Args:
            base: what is trained on.
            adapter: its resource name; "" for a result that is a base's version.

        Raises:
            RegistryRefusedError: they exist and are others.
            GraftError: UNAVAILABLE.
        """
        return await self._patiently(lambda: self._check(base, adapter))

    async def _check(self, base: pb.Base, adapter: str) -> str:
        version = ""
        with suppress(NotFoundError), rpc_errors(_PEER):
            version = await self._version_of(base)
        if not adapter:
            return version
        with suppress(NotFoundError), rpc_errors(_PEER):
            found = await self._registry.GetAdapter(
                pb.GetAdapterRequest(name=adapter), metadata=self._metadata
            )
            _check_base(found, base)
        return version

    async def find(self, output: str, job: str, spec_json: str) -> pb.Version | None:
        """The version that a job of that name and spec has made already.

        Args:
            output: resource name of the adapter or base.

        Raises:
            RegistryRefusedError: with the registry's words.
            GraftError: UNAVAILABLE.
        """
        return await self._patiently(lambda: self._find(output, job, spec_json))

    async def _find(self, output: str, job: str, spec_json: str) -> pb.Version | None:
        request = pb.ListVersionsRequest(parent=output, filter=f'job = "{job}"')
        try:
            with rpc_errors(_PEER):
                answer = await self._registry.ListVersions(request, metadata=self._metadata)
        except NotFoundError:
            return None
        made = (one for one in answer.versions if one.manifest.lineage.spec_json == spec_json)
        return next(made, None)

    async def _version_of(self, base: pb.Base) -> str:
        """The base's version with that fingerprint; "" for the base as it was recorded first."""
        stored = await self._registry.GetBase(
            pb.GetBaseRequest(name=base.name), metadata=self._metadata
        )
        wanted = f'fingerprint = "{base.fingerprint.digest}"'
        request = pb.ListVersionsRequest(parent=base.name, filter=wanted, page_size=1)
        answer = await self._registry.ListVersions(request, metadata=self._metadata)
        if not answer.versions:
            _check_same(stored, base)
        return answer.versions[0].name if answer.versions else ""

    async def _record(self, base: pb.Base) -> None:
        """Records a base where neither it nor a version of it is known with that fingerprint."""
        try:
            with rpc_errors(_PEER):
                await self._registry.CreateBase(
                    pb.CreateBaseRequest(base=base), metadata=self._metadata
                )
        except GraftError as error:
            if error.reason is not Reason.ALREADY_EXISTS:
                raise
            with rpc_errors(_PEER):
                await self._version_of(base)

    async def prepare_bases(self, base: pb.Base, result: pb.Base) -> None:
        """Records the base that was trained on, and the one that the result is a version of, where they are new.

        Raises:
            RegistryRefusedError: the first exists and is another.
            GraftError: UNAVAILABLE.
        """
        await self._patiently(lambda: self._prepare_bases(base, result))

    async def _prepare_bases(self, base: pb.Base, result: pb.Base) -> None:
        await self._record(base)
        try:
            with rpc_errors(_PEER):
                await self._registry.GetBase(
                    pb.GetBaseRequest(name=result.name), metadata=self._metadata
                )
        except NotFoundError:
            with rpc_errors(_PEER):
                await self._registry.CreateBase(
                    pb.CreateBaseRequest(base=result), metadata=self._metadata
                )

    async def prepare(self, base: pb.Base, adapter: str) -> None:
        """Records base and adapter, where they are not yet.

        Raises:
            RegistryRefusedError: they exist and are others.
            GraftError: UNAVAILABLE.
        """
        await self._patiently(lambda: self._prepare(base, adapter))

    async def _prepare(self, base: pb.Base, adapter: str) -> None:
        await self._record(base)
        try:
            with rpc_errors(_PEER):
                found = await self._registry.GetAdapter(
                    pb.GetAdapterRequest(name=adapter), metadata=self._metadata
                )
        except NotFoundError:
            found = await self._create_adapter(base, adapter)
        _check_base(found, base)

    async def _create_adapter(self, base: pb.Base, adapter: str) -> pb.Adapter:
        request = pb.CreateAdapterRequest(
            adapter=pb.Adapter(name=adapter, base=base.name), request_id=f"{self._actor}/adapter"
        )
        try:
            with rpc_errors(_PEER):
                created: pb.Adapter = await self._registry.CreateAdapter(
                    request, metadata=self._metadata
                )
            return created
        except GraftError as error:
            if error.reason is not Reason.ALREADY_EXISTS:
                raise
        with rpc_errors(_PEER):
            found: pb.Adapter = await self._registry.GetAdapter(
                pb.GetAdapterRequest(name=adapter), metadata=self._metadata
            )
        return found

    def holding(self, result: Result) -> LeaseKeeper:
        """Keeps the result's files from collection until they are a version; never fails."""
        digests = [file.digest for file in result.request.files]
        return LeaseKeeper(self._channel, self._actor, "upload", digests, warn=self._log)

    async def upload(self, result: Result) -> None:
        """Uploads the result's files.

        Raises:
            RegistryRefusedError: for example its disk is full.
            GraftError: UNAVAILABLE.
        """
        for file in result.request.files:
            await self._patiently(lambda file=file: self._upload(result.folder, file))  # type: ignore[misc]

    async def _upload(self, folder: Path, file: File) -> None:
        await self._blobs.upload(folder / file.path, file)

    async def commit(self, result: Result, guard: Guard) -> pb.Version:
        """Makes the uploaded result a version; again, the same version. Each call is made inside guard().

        Raises:
            RegistryRefusedError: with the registry's words.
            GraftError: UNAVAILABLE.
        """

        async def once() -> pb.Version:
            with guard(), rpc_errors(_PEER):
                version: pb.Version = await self._registry.CommitVersion(
                    result.request, metadata=self._metadata
                )
            return version

        return await self._patiently(once)

    async def sign(self, version: pb.Version, result: Result, key: PrivateKey) -> None:
        """Signs what was trained here, and not what the registry may say of it; again, it is kept once.

        Raises:
            RegistryRefusedError: the version is not of the result's files.
            GraftError: UNAVAILABLE.
        """
        await self._patiently(lambda: self._sign(version, result, key))

    async def _sign(self, version: pb.Version, result: Result, key: PrivateKey) -> None:
        made = {file.path: file.digest for file in result.request.files}
        if {file.path: file.digest for file in version.manifest.files} != made:
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"{version.name} does not consist of the files that were trained, and is not signed",
                next_step="Do not use it; look at the registry's audit log.",
            )
        envelope = sign(digest_message(version.manifest), key)
        request = pb.SignVersionRequest(name=version.name, envelope_json=envelope)
        with rpc_errors(_PEER):
            await self._registry.SignVersion(request, metadata=self._metadata)
        self._log(f"Signed by {key.public.key_id}.")

    async def point(self, alias: str, version: pb.Version, conditions: Sequence[str] = ()) -> str:
        """Points an alias at a version, by compare-and-set against what it names now.

        Args:
            conditions: as graft.conditions.parse_condition() takes them; all must hold, and those of the alias' policy.

        Returns:
            "", or why the alias stays where it is: which condition does not hold, with both numbers.

        Raises:
            RegistryRefusedError: it does not stand still.
            GraftError: UNAVAILABLE.
        """
        gate = [parse_condition(one) for one in conditions]
        return await self._patiently(lambda: self._point(alias, version, gate))

    async def pointed(self, alias: str, version: str) -> bool:
        """Whether an alias has named a version at any time; what people did since then is theirs.

        Raises:
            RegistryRefusedError: with the registry's words.
            GraftError: UNAVAILABLE.
        """
        return await self._patiently(lambda: self._pointed(alias, version))

    async def _pointed(self, alias: str, version: str) -> bool:
        token = ""
        while True:
            request = pb.ListAliasHistoryRequest(name=alias, page_token=token)
            try:
                with rpc_errors(_PEER):
                    page = await self._registry.ListAliasHistory(request, metadata=self._metadata)
            except NotFoundError:
                return False
            if any(entry.version == version for entry in page.aliases):
                return True
            token = page.next_page_token
            if not token:
                return False

    async def _point(self, alias: str, version: pb.Version, gate: Sequence[pb.Condition]) -> str:
        for attempt in range(1, _ALIAS_ATTEMPTS + 1):
            now = await self._alias_target(alias)
            if now == version.name:
                return ""
            request = pb.SetAliasRequest(
                name=alias,
                version=version.name,
                expected_version=now,
                reason=f"Trained by {self._actor}",
                gate=gate,
            )
            try:
                with rpc_errors(_PEER):
                    await self._registry.SetAlias(request, metadata=self._metadata)
                return ""
            except GraftError as error:
                if error.reason is Reason.GATE_REFUSED:
                    return _not_moved(alias, version.name, now, error)
                if error.reason is not Reason.ALIAS_MOVED or attempt == _ALIAS_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _alias_target(self, alias: str) -> str:
        try:
            with rpc_errors(_PEER):
                found = await self._registry.GetAlias(
                    pb.GetAliasRequest(name=alias), metadata=self._metadata
                )
            return str(found.version)
        except NotFoundError:
            return ""

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does work, again while the registry is away and patience lasts."""
        give_up_at, pause_s, told = time.monotonic() + self._patience_s, _FIRST_PAUSE_S, False
        while True:
            try:
                done = await work()
                if told:
                    self._waiting("")
                return done
            except GraftError as error:
                if error.reason not in (Reason.UNAVAILABLE, Reason.OVERLOADED):
                    raise RegistryRefusedError(error) from error
                if time.monotonic() + pause_s > give_up_at:
                    raise
                if not told:
                    self._waiting(f"{error.message}; trying again for {self._patience_s:g} s.")
                    told = True
            self._check_stop()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _not_moved(alias: str, version: str, now: str, error: GraftError) -> str:
    stays = f"still names {now}" if now else "names nothing yet"
    return f"{version} is stored, but {alias} {stays}: {error.message}"


def _check_same(stored: pb.Base, base: pb.Base) -> None:
    if stored.fingerprint.digest != base.fingerprint.digest:
        raise GraftError(
            Reason.WRONG_BASE,
            f"{base.name} is another model in the registry: its fingerprint is "
            f"{stored.fingerprint.digest}, that of {base.source} is {base.fingerprint.digest}",
            next_step="Name this one otherwise in base.name, or train on the recorded one.",
        )


def _check_base(adapter: pb.Adapter, base: pb.Base) -> None:
    if adapter.base != base.name:
        raise GraftError(
            Reason.WRONG_BASE,
            f"{adapter.name} belongs to {adapter.base}, not to {base.name}",
            next_step="Name another adapter in output.adapter, or train on its base.",
        )
