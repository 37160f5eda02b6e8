"""Hostile names and listings, asked of an endpoint: nothing is read or written outside of its cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason

from services.inference.domain import AdapterFile, AdapterVersion, Change
from services.inference.registry.memory import MemoryRegistry
from tests.support.inference import FINGERPRINT, start_inference

NAMES = [
    "",
    " ",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "bot@../../production",
    "bot@",
    "bot:",
    "bot:0",
    "bot:-1",
    "bot:1e3",
    "bot:" + "9" * 4000,
    "bot@production@production",
    "default/../other/bot",
    "b" * 100_000,
    "\u00df" * 10_000,
    "bot\x00",
    "bot\n@production",
    "b\u043et",
    "bot' OR 1=1 --",
    "{bot}%s%n",
    "*",
]


class LyingRegistry(MemoryRegistry):
    """Lists a file more than there is, and may say another digest."""

    extra = AdapterFile("../../../evil.md", "sha256:" + "e" * 64, 4)
    digest = ""

    async def _record(self, change: Change) -> None:
        if isinstance(change, AdapterVersion):
            files = (*change.files, self.extra)
            change = replace(change, files=files, digest=self.digest or change.digest)
        await super()._record(change)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_a_hostile_name_is_a_clear_refusal(name: str, tmp_path: Path) -> None:
    async with start_inference(tmp_path) as service:
        await service.publish("bot", "good")
        before = (await service.ask("bot")).text
        with pytest.raises(GraftError) as caught, rpc_errors("the service"):
            await service.ask(name)
        assert caught.value.next_step
        assert caught.value.reason in (
            Reason.INVALID_REFERENCE,
            Reason.INVALID_REQUEST,
            Reason.VERSION_NOT_FOUND,
            Reason.ADAPTER_NOT_FOUND,
        )
        assert (await service.ask("bot")).text == before


async def test_a_listed_path_outside_of_the_cache_is_never_written(tmp_path: Path) -> None:
    registry = LyingRegistry(FINGERPRINT)
    async with start_inference(tmp_path, registry=registry) as service:
        await service.publish("bot", "good")
        assert (await service.ask("bot:1")).text
    assert LyingRegistry.extra.digest not in registry.fetched
    assert not list(tmp_path.rglob("evil.md"))


@pytest.mark.parametrize("digest", ["../../evil", "sha256:../../evil", "sha256:" + "A" * 64])
async def test_a_digest_that_is_a_path_is_refused(digest: str, tmp_path: Path) -> None:
    registry = LyingRegistry(FINGERPRINT)
    registry.digest = digest
    async with start_inference(tmp_path, registry=registry) as service:
        await service.publish("bot", "good")
        with pytest.raises(GraftError) as caught, rpc_errors("the service"):
            await service.ask("bot:1")
        assert caught.value.reason is Reason.ADAPTER_UNUSABLE
        assert "digest" in caught.value.message
