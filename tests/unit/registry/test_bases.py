"""A recorded base is read back whole, listed without its bulk, and missed by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import registry_calls, running_registry


async def test_a_base_is_read_back_whole_and_listed_without_its_bulk(
    tiny_base: Path, tmp_path: Path
) -> None:
    async with running_registry(tmp_path) as registry, registry_calls(registry.address) as calls:
        recorded = await calls.create_base(tiny_base)
        read = await calls.stub.GetBase(pb.GetBaseRequest(name=recorded.name))
        assert read == recorded
        assert {module.path for module in read.modules} >= {"model.layers.0.self_attn.q_proj"}
        (listed,) = (
            await calls.stub.ListBases(pb.ListBasesRequest(parent="namespaces/default"))
        ).bases
        assert listed.fingerprint == recorded.fingerprint
        assert (len(listed.modules), listed.config_json) == (0, "")


async def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, registry_calls(registry.address) as calls:
        with pytest.raises(GraftError, match="bases/nobody") as raised, rpc_errors("the registry"):
            await calls.stub.GetBase(pb.GetBaseRequest(name="namespaces/default/bases/nobody"))
        assert raised.value.reason is Reason.BASE_NOT_FOUND
