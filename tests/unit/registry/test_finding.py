"""Listing and updating over real gRPC: filters, orders, tokens of other listings, masks and etags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import RegistryCalls

NS = "namespaces/default"
BOT = f"{NS}/adapters/bot"


@pytest.fixture
async def versions(calls: RegistryCalls, tiny_base: Path, adapters: list[Path]) -> list[pb.Version]:
    """Two versions of bot, with labels and a metric each."""
    base = await calls.create_base(tiny_base)
    await calls.create_adapter()
    return [
        await calls.commit(
            adapters[index],
            base.fingerprint.digest,
            labels={"stage": stage},
            lineage=pb.Lineage(metrics={"eval_loss": loss}),
        )
        for index, (stage, loss) in enumerate((("test", 0.5), ("done", 0.7)))
    ]


async def listed(calls: RegistryCalls, **fields: Any) -> pb.ListVersionsResponse:
    """A page of versions."""
    with rpc_errors("the registry"):
        return await calls.stub.ListVersions(
            pb.ListVersionsRequest(**{"parent": BOT, "page_size": 1, **fields})
        )


async def refusal(call: Any) -> GraftError:
    """The error that a call ends with."""
    with pytest.raises(GraftError) as raised, rpc_errors("the registry"):
        await call
    return raised.value


async def test_versions_are_filtered_and_sorted(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    found = await listed(calls, filter='labels.stage = "done" AND metrics.eval_loss > 0.6')
    assert list(found.versions) == [versions[1]]
    first = await listed(calls, order_by="metrics.eval_loss")
    assert list(first.versions) == [versions[0]]
    rest = await listed(calls, order_by="metrics.eval_loss", page_token=first.next_page_token)
    assert (list(rest.versions), rest.next_page_token) == ([versions[1]], "")
    everywhere = await listed(calls, parent=f"{NS}/adapters/-", page_size=9)
    assert list(everywhere.versions) == versions[::-1]


async def test_a_token_is_good_for_the_same_question_only(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    token = (await listed(calls)).next_page_token
    changed: tuple[dict[str, Any], ...] = (
        {"filter": "rank = 8"},
        {"order_by": "rank"},
        {"show_deleted": True},
        {"parent": f"{NS}/adapters/-"},
    )
    for fields in changed:
        error = await refusal(listed(calls, page_token=token, **fields))
        assert error.reason is Reason.INVALID_PAGE_TOKEN
    assert len((await listed(calls, page_token=token, page_size=5)).versions) == 1


async def test_a_wrong_filter_order_or_parent_is_told(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    wrong: dict[Reason, dict[str, Any]] = {
        Reason.INVALID_FILTER: {"filter": "rank ="},
        Reason.INVALID_REQUEST: {"order_by": "name"},
        Reason.INVALID_NAME: {"parent": f"{NS}/models/-"},
    }
    for reason, fields in wrong.items():
        assert (await refusal(listed(calls, **fields))).reason is reason
    request = pb.ListAdaptersRequest(parent=NS, filter="rank = 8")
    error = await refusal(calls.stub.ListAdapters(request))
    assert (error.reason, error.metadata["position"]) == (Reason.INVALID_FILTER, "1")


async def test_what_is_said_is_changed_by_mask_and_etag(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    version = pb.Version(
        name=versions[0].name, description="good", labels={"x": "1"}, etag=versions[0].etag
    )
    request = pb.UpdateVersionRequest(version=version, update_mask=FieldMask(paths=["labels"]))
    changed = await calls.stub.UpdateVersion(request)
    assert (changed.description, dict(changed.labels)) == ("", {"x": "1"})
    assert changed.digest == versions[0].digest
    assert await calls.get_version(versions[0].name) == changed
    error = await refusal(calls.stub.UpdateVersion(request))
    assert (error.reason, error.metadata["etag"]) == (Reason.ETAG_MISMATCH, changed.etag)
    # Without a mask both are taken.
    adapter = await calls.stub.UpdateAdapter(
        pb.UpdateAdapterRequest(adapter=pb.Adapter(name=BOT, description="answers"))
    )
    assert (adapter.description, adapter.latest_version) == ("answers", 2)
    base = await calls.stub.UpdateBase(
        pb.UpdateBaseRequest(base=pb.Base(name=f"{NS}/bases/tiny", labels={"y": "2"}))
    )
    assert (dict(base.labels), len(base.modules) > 0) == ({"y": "2"}, True)


async def test_only_what_is_said_can_be_changed(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    mask = FieldMask(paths=["base"])
    request = pb.UpdateAdapterRequest(adapter=pb.Adapter(name=BOT), update_mask=mask)
    error = await refusal(calls.stub.UpdateAdapter(request))
    assert (error.reason, "'base'" in error.message) == (Reason.INVALID_REQUEST, True)
    many = pb.Adapter(name=BOT, labels={str(n): "" for n in range(65)})
    error = await refusal(calls.stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=many)))
    assert error.reason is Reason.INVALID_REQUEST


async def test_listed_bases_come_without_what_they_are_made_of(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    (base,) = (await calls.stub.ListBases(pb.ListBasesRequest(parent=NS))).bases
    assert (base.name, len(base.modules), base.config_json) == (f"{NS}/bases/tiny", 0, "")
