"""A version is verified by its manifest's digest and, by policy, its signature before vLLM sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from graft.keys import load_key, new_key
from graft.names import ModelReference
from graft.registry.v1 import registry_service_pb2 as pb
from graft.signatures import sign

from services.inference.registry.remote import RemoteRegistry
from tests.unit.vllm_plugin.conftest import World

pytestmark = pytest.mark.engine
Say = Callable[[Callable[[pb.Version], None]], None]


@pytest.fixture
def registry_says(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Has the registry say something else of every version than it does."""
    ask = RemoteRegistry.find_message

    def say(change: Callable[[pb.Version], None]) -> None:
        async def changed(registry: RemoteRegistry, reference: ModelReference) -> pb.Version:
            message = await ask(registry, reference)
            change(message)
            return message

        monkeypatch.setattr(RemoteRegistry, "find_message", changed)

    return say


async def test_a_manifest_that_is_not_the_one_of_its_digest_is_refused(
    world: World, registry_says: Say, log: pytest.LogCaptureFixture
) -> None:
    await world.push()
    server = await world.start_server()

    def other_rank(message: pb.Version) -> None:
        message.manifest.rank = 4

    registry_says(other_rank)
    assert await server.ask("bot") == ""
    assert "The manifest of namespaces/default/adapters/bot/versions/1 has the digest" in log.text


@pytest.mark.parametrize(
    ("policy", "signer", "served"),
    [
        ("require", "", False),
        ("require", "stranger", False),
        ("require", "friend", True),
        ("warn", "stranger", True),
        ("off", "", True),
    ],
)
async def test_the_policy_decides_what_a_version_without_a_trusted_signature_means(
    world: World,
    registry_says: Say,
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
    policy: str,
    signer: str,
    served: bool,
) -> None:
    await world.push()
    for name in ("friend", "stranger"):
        new_key(tmp_path / name)

    def signed(message: pb.Version) -> None:
        if signer:
            envelope = sign(message.digest, load_key(tmp_path / signer))
            message.signatures.add().envelope_json = envelope

    registry_says(signed)
    server = await world.start_server(
        GRAFT_SIGNATURE_POLICY=policy, GRAFT_TRUSTED_KEYS=str(tmp_path / "friend.pub")
    )
    assert await server.ask("bot") == ("bot:1" if served else "")
    complains = policy != "off" and signer != "friend"
    assert ("signature" in log.text or "signed by" in log.text) == complains
