"""Signatures in the registry: kept beside the version, told to whoever follows, checked in form."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.keys import PrivateKey, load_key, new_key
from graft.registry.v1 import registry_service_pb2 as pb
from graft.signatures import sign

from tests.support.registry import RegistryCalls


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    new_key(tmp_path / "key")
    return load_key(tmp_path / "key")


@pytest.fixture
def version(versions: list[pb.Version]) -> pb.Version:
    return versions[0]


async def _sign(calls: RegistryCalls, name: str, envelope: str) -> pb.Version:
    with rpc_errors("the registry"):
        request = pb.SignVersionRequest(name=name, envelope_json=envelope)
        return await calls.stub.SignVersion(request)


async def test_a_signature_is_kept_with_who_and_when_and_nothing_else_changes(
    calls: RegistryCalls, version: pb.Version, key: PrivateKey
) -> None:
    envelope = sign(version.digest, key)
    signed = await _sign(calls, version.name, envelope)
    assert await calls.get_version(version.name) == signed
    (kept,) = signed.signatures
    assert (kept.key_id, kept.envelope_json) == (key.public.key_id, envelope)
    assert kept.create_time.seconds > 0
    signed.ClearField("signatures")
    assert signed == version


async def test_the_same_signature_again_is_kept_once(
    calls: RegistryCalls, version: pb.Version, key: PrivateKey
) -> None:
    envelope = sign(version.digest, key)
    first = await _sign(calls, version.name, envelope)
    assert await _sign(calls, version.name, envelope) == first


async def test_whoever_follows_is_told_of_a_signature(
    calls: RegistryCalls, version: pb.Version, key: PrivateKey
) -> None:
    parent = pb.ListAliasesRequest(parent="namespaces/default/adapters/-")
    revision = (await calls.stub.ListAliases(parent)).revision
    await _sign(calls, version.name, sign(version.digest, key))
    told = await calls.first_of_watch(after=revision)
    assert told.change_type == pb.CHANGE_TYPE_UPDATED
    assert told.version.signatures[0].key_id == key.public.key_id


async def test_a_signature_of_something_else_is_refused(
    calls: RegistryCalls, version: pb.Version, key: PrivateKey
) -> None:
    for envelope in (sign("sha256:" + "0" * 64, key), "{}", ""):
        with pytest.raises(GraftError) as caught:
            await _sign(calls, version.name, envelope)
        assert caught.value.reason is Reason.SIGNATURE_INVALID
        assert caught.value.next_step
    assert not (await calls.get_version(version.name)).signatures


async def test_a_version_that_is_not_there_cannot_be_signed(
    calls: RegistryCalls, version: pb.Version, key: PrivateKey
) -> None:
    with pytest.raises(GraftError) as caught:
        await _sign(calls, version.name[:-1] + "9", sign(version.digest, key))
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
