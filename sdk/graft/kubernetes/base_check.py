"""What the registry says about a base before it is deployed: that it is there, and whose adapters fit it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from graft.client import Client
from graft.errors import GraftError, NotFoundError, Reason
from graft.names import DEFAULT_ALIAS, alias_name, base_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"
_AT_ONCE = 16
# The last moved; who has more finds out at the replicas.
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Checked:
    """The base's weights, and production aliases whose versions were trained on others.

    Attributes:
        fingerprint: of what is to be served; "" where only the pods' files say it.
        production: how many production aliases the base has.
        elsewhere: those among them that do not fit, as "bot:3".
    """

    fingerprint: str
    production: int
    elsewhere: tuple[str, ...]


async def check_base(client: Client, base: str, revision: int) -> Checked:
    """Asks the registry.

    Args:
        revision: the version of the base that is to be served; 0 where the pods bring the files.

    Raises:
        GraftError: BASE_NOT_FOUND, VERSION_NOT_FOUND, UNAVAILABLE.
    """
    full = base_name(client.namespace, base)
    fitting = (await client.bases.get(full)).fingerprint
    if revision:
        versions = await client.base_versions.list(full, filter=f"number = {revision}")
        if not versions:
            raise GraftError(
                Reason.VERSION_NOT_FOUND,
                f"base {base} has no version {revision}",
                next_step=f"See `graft bases versions {base}`, or push one with `graft bases push`.",
            )
        fitting = versions[0].fingerprint
    adapters = {one.name for one in await client.adapters.list() if one.base == full}
    aliases = await client.connection.call(
        client.connection.registry.ListAliases,
        pb.ListAliasesRequest(parent=f"namespaces/{client.namespace}/adapters/-"),
        _PEER,
    )
    wanted = {alias_name(adapter, DEFAULT_ALIAS) for adapter in adapters}
    production = [one for one in aliases.aliases if one.name in wanted]
    newest = sorted(production, key=lambda one: one.revision, reverse=True)[:_MOST]
    if not revision:
        # It is the fingerprint of the pods' files that counts, which nobody here has read.
        return Checked("", len(production), ())
    elsewhere = await _elsewhere(client, [one.version for one in newest], fitting)
    return Checked(fitting, len(production), elsewhere)


async def _elsewhere(client: Client, versions: list[str], fingerprint: str) -> tuple[str, ...]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def fits(version: str) -> bool:
        async with turns:
            try:
                found = await client.connection.call(
                    client.connection.registry.GetVersion, pb.GetVersionRequest(name=version), _PEER
                )
            except NotFoundError:
                # It was deleted meanwhile.
                return True
        return bool(found.manifest.base_fingerprint == fingerprint)

    fitting = await asyncio.gather(*(fits(one) for one in versions))
    return tuple(_short(version) for version, fit in zip(versions, fitting, strict=True) if not fit)


def _short(version: str) -> str:
    adapter, _, number = version.partition("/versions/")
    return f"{adapter.rpartition('/')[2]}:{number}"
