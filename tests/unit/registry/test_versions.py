"""Adapters, bases and versions over real gRPC."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.blobs import describe_file
from graft.digests import digest_message
from graft.errors import ConflictError, GraftError, InvalidError, Reason, RefusedError
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.models import make_adapter, make_base
from tests.support.registry import RegistryCalls

BOT = "namespaces/default/adapters/bot"


async def test_a_committed_version_can_be_got_by_number_and_by_alias(
    calls: RegistryCalls, base: pb.Base, tiny_adapter: Path
) -> None:
    version = await calls.commit(tiny_adapter, base.fingerprint.digest)
    assert version.name == f"{BOT}/versions/1"
    alias = await calls.set_alias(version.name)
    assert alias.version_digest == version.digest
    for name in (version.name, alias.name):
        assert await calls.stub.GetVersion(pb.GetVersionRequest(name=name)) == version
    assert version.manifest.rank == 8
    assert list(version.manifest.target_modules) == ["q_proj", "v_proj"]
    assert version.admission.checks[-1].name == "finite-values"


async def test_a_versions_digest_is_that_of_its_manifest_with_its_lineage(
    calls: RegistryCalls, base: pb.Base, tiny_adapter: Path
) -> None:
    lineage = pb.Lineage(
        job="namespaces/default/jobs/j1",
        attempt=2,
        seed=7,
        library_versions={"peft": "0.21.2"},
        metrics={"train_loss": 0.25, "eval_loss": float("nan")},
    )
    version = await calls.commit(tiny_adapter, base.fingerprint.digest, lineage=lineage)
    assert version.digest == digest_message(version.manifest)
    again = await calls.stub.GetVersion(pb.GetVersionRequest(name=version.name))
    assert digest_message(again.manifest) == version.digest
    assert again.manifest.lineage.job == lineage.job
    assert dict(again.manifest.lineage.library_versions) == {"peft": "0.21.2"}


async def test_what_was_committed_can_be_fetched_whole(
    calls: RegistryCalls, versions: list[pb.Version], adapters: list[Path], tmp_path: Path
) -> None:
    for file in versions[0].manifest.files:
        await calls.blobs.fetch(file, tmp_path / file.path)
        assert (tmp_path / file.path).read_bytes() == (adapters[0] / file.path).read_bytes()


async def test_a_repeated_commit_makes_no_second_version(
    calls: RegistryCalls, base: pb.Base, tiny_adapter: Path
) -> None:
    first = await calls.commit(tiny_adapter, base.fingerprint.digest, request_id="r1")
    by_request = await calls.commit(tiny_adapter, base.fingerprint.digest, request_id="r1")
    by_manifest = await calls.commit(tiny_adapter, base.fingerprint.digest, request_id="r2")
    assert by_request == by_manifest == first
    bot = await calls.stub.GetAdapter(pb.GetAdapterRequest(name=BOT))
    assert bot.latest_version == 1


async def test_a_request_id_is_not_good_for_another_request(
    calls: RegistryCalls, base: pb.Base, adapters: list[Path]
) -> None:
    await calls.commit(adapters[0], base.fingerprint.digest, request_id="r1")
    with pytest.raises(InvalidError, match="'r1'") as raised:
        await calls.commit(adapters[1], base.fingerprint.digest, request_id="r1")
    assert raised.value.reason is Reason.REQUEST_ID_REUSED


async def test_a_refused_version_does_not_exist_and_the_registry_goes_on(
    calls: RegistryCalls, base: pb.Base, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    wide = make_base(tmp_path / "wide", hidden=128)
    bad = make_adapter(tmp_path / "bad", wide)
    with pytest.raises(RefusedError, match="64 in_features") as raised:
        await calls.commit(bad, base.fingerprint.digest)
    assert raised.value.metadata["check"] == "shapes"
    assert raised.value.metadata["tensor"].endswith("layers.0.self_attn.q_proj.lora_A.weight")
    assert raised.value.next_step
    assert not (await calls.stub.ListVersions(pb.ListVersionsRequest(parent=BOT))).versions
    good = await calls.commit(tiny_adapter, base.fingerprint.digest)
    assert good.number == 1


async def test_an_adapter_can_be_corrected_and_committed_under_the_same_request_id(
    calls: RegistryCalls, base: pb.Base, tiny_adapter: Path
) -> None:
    with pytest.raises(RefusedError):
        await calls.commit(tiny_adapter, "sha256:" + "0" * 64, request_id="r1")
    assert (await calls.commit(tiny_adapter, base.fingerprint.digest, request_id="r1")).number == 1


async def test_an_adapters_request_id_answers_the_stored_one(
    calls: RegistryCalls, base: pb.Base
) -> None:
    request = pb.CreateAdapterRequest(
        adapter=pb.Adapter(name=f"{BOT}-2", base=base.name, labels={"team": "support"}),
        request_id="r",
    )
    first = await calls.stub.CreateAdapter(request)
    assert await calls.stub.CreateAdapter(request) == first
    assert dict(first.labels) == {"team": "support"}
    with pytest.raises(ConflictError, match="exists already") as raised:
        await calls.create_adapter("bot-2")
    assert raised.value.reason is Reason.ALREADY_EXISTS


async def test_an_incomplete_base_is_refused_by_the_field(
    calls: RegistryCalls, base: pb.Base, tiny_base: Path
) -> None:
    for field, words in (("modules", "no modules"), ("config_json", "config_json")):
        spoiled = pb.Base()
        spoiled.CopyFrom(base)
        spoiled.name += "-2"
        spoiled.ClearField(field)  # type: ignore[arg-type]
        with pytest.raises(GraftError, match=words):
            await calls.create_base_message(spoiled)


async def test_listings_go_on_with_their_token_and_with_no_other(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    request = pb.ListVersionsRequest(parent=BOT, page_size=1)
    first = await calls.stub.ListVersions(request)
    assert [one.number for one in first.versions] == [2]
    request.page_token = first.next_page_token
    second = await calls.stub.ListVersions(request)
    assert ([one.number for one in second.versions], second.next_page_token) == ([1], "")
    for token in ("x", first.next_page_token[:-4], "W10="):
        with pytest.raises(InvalidError) as raised:
            await calls.list_adapters(token)
        assert raised.value.reason is Reason.INVALID_PAGE_TOKEN
    with pytest.raises(InvalidError, match="ListAdapters"):
        await calls.list_adapters(first.next_page_token)


@pytest.mark.parametrize("name", [f"{BOT}/versions/x", f"{BOT}/versions/0", BOT, "", "a/../b"])
async def test_a_name_that_is_none_is_refused(calls: RegistryCalls, name: str) -> None:
    with pytest.raises(InvalidError):
        await calls.get_version(name)


async def test_a_digest_is_uploaded_once_whoever_has_it(
    calls: RegistryCalls, versions: list[pb.Version], adapters: list[Path]
) -> None:
    file = describe_file(adapters[0], adapters[0] / "adapter_model.safetensors")
    assert await calls.blobs.missing([file.digest, "sha256:" + "0" * 64]) == {"sha256:" + "0" * 64}
    sent: list[int] = []
    await calls.blobs.upload(adapters[0] / file.path, file, sent.append)
    assert sent == []
