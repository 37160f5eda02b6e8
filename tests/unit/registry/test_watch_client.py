"""client.watch() and `graft watch` of one adapter's aliases, over a registry that goes away and comes back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import graft
from graft.cli.app import app
from typer.testing import CliRunner

from services.registry.server import RegistryServer
from tests.support.registry import running_registry


async def test_a_watch_of_one_adapter_goes_on_across_restarts_without_a_gap(
    tmp_path: Path, tiny_base: Path, adapters: list[Path]
) -> None:
    folder = tmp_path / "registry"
    async with running_registry(folder) as server:
        address = server.address
        async with graft.Client(registry=address) as client:
            for pushed in adapters[:2]:
                await client.adapters.push("bot", pushed, base=tiny_base)
            await client.adapters.push("other", adapters[0], base=tiny_base)
    async with (
        graft.Client(registry=address) as client,
        asyncio.timeout(120),
        aclosing(client.watch(0, resource="bot", kinds=["alias"])) as changes,
    ):
        seen: list[tuple[str, str]] = []
        # The watch waits while there is no registry, and is not begun anew by the next one.
        for to in (1, 2, 1):
            change = asyncio.ensure_future(anext(changes))
            async with running_registry(folder, listen=address):
                await client.adapters.promote("other", 1, alias=f"a{len(seen)}")
                await client.adapters.promote("bot", to, reason=f"to {to}")
                alias = (await change).alias
                assert alias is not None
                seen.append((alias.name.rpartition("/adapters/")[2], alias.reason))
    assert seen == [("bot/aliases/production", f"to {to}") for to in (1, 2, 1)]


async def test_whoever_comes_too_late_is_told_to_list_again(registry: RegistryServer) -> None:
    asked = ["--registry", registry.address, "watch", "--from-revision", "99", "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, asked)
    assert result.exit_code == 2
    assert '"reason": "REVISION_COMPACTED"' in result.stderr
    assert "List again" in result.stderr
