"""GetLineage over the wire: what may be asked, and the graph of versions that were really pushed."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import RegistryCalls

NS = "namespaces/default"
BOT, TINY = f"{NS}/adapters/bot", f"{NS}/bases/tiny"
UP, DOWN = pb.LINEAGE_DIRECTION_SOURCES, pb.LINEAGE_DIRECTION_RESULTS


async def ask(calls: RegistryCalls, request: pb.GetLineageRequest) -> pb.GetLineageResponse:
    """The answer, or a GraftError."""
    with rpc_errors("the registry"):
        return await calls.stub.GetLineage(request)


async def test_versions_hang_on_their_base_and_data_both_ways(
    calls: RegistryCalls, base: pb.Base, adapters: list[Path]
) -> None:
    origin = pb.Lineage(job=f"{NS}/jobs/j", data_digest=f"sha256:{'d' * 64}", data_rows=20)
    first = await calls.commit(adapters[0], base.fingerprint.digest, lineage=origin)
    origin.parent_versions.append(first.name)
    second = await calls.commit(adapters[1], base.fingerprint.digest, lineage=origin)
    up = await ask(calls, pb.GetLineageRequest(name=second.name, direction=UP))
    assert (up.nodes[0].name, up.nodes[0].kind) == (second.name, "version")
    assert up.nodes[0].facts["digest"] == second.digest
    assert up.nodes[0].facts["data_rows"] == "20"
    data = f"{NS}/data/sha256:{'d' * 64}"
    assert {(edge.relation, edge.source) for edge in up.edges if edge.result == second.name} == {
        ("base", TINY), ("job", f"{NS}/jobs/j"), ("data", data), ("parent", first.name),
    }  # fmt: skip
    for source in (TINY, data, f"{NS}/jobs/j"):
        down = await ask(calls, pb.GetLineageRequest(name=source, direction=DOWN))
        assert {node.name for node in down.nodes} == {source, first.name, second.name}


async def test_what_nothing_was_made_from_is_alone(calls: RegistryCalls) -> None:
    for name, kind in {
        f"{NS}/jobs/none": "job",
        f"{NS}/data/sha256:none": "data",
        "hf://org/none@abc": "source",
    }.items():
        answer = await ask(calls, pb.GetLineageRequest(name=name))
        assert [(node.name, node.kind) for node in answer.nodes] == [(name, kind)]
        assert not answer.edges


REFUSED = {
    "": Reason.INVALID_REQUEST,
    "bot:7": Reason.INVALID_REQUEST,
    "x" * 513: Reason.INVALID_REQUEST,
    "namespaces/default": Reason.INVALID_NAME,
    f"{BOT}/versions/seven": Reason.INVALID_REQUEST,
    f"{BOT}/versions/0": Reason.INVALID_REQUEST,
    f"{NS}/jobs/": Reason.INVALID_NAME,
    "namespaces/UPPER/data/sha256:d": Reason.INVALID_NAME,
    f"{BOT}/versions/7": Reason.VERSION_NOT_FOUND,
    TINY: Reason.BASE_NOT_FOUND,
}


@pytest.mark.parametrize("name", REFUSED, ids=range(len(REFUSED)))
async def test_names_of_nothing_are_refused_with_what_to_do(
    calls: RegistryCalls, name: str
) -> None:
    with pytest.raises(GraftError) as raised:
        await ask(calls, pb.GetLineageRequest(name=name))
    assert (raised.value.reason, raised.value.next_step != "") == (REFUSED[name], True)


async def test_depth_and_direction_are_checked(calls: RegistryCalls) -> None:
    for wrong in (
        pb.GetLineageRequest(name="hf://a/b", depth=-1),
        pb.GetLineageRequest(name="hf://a/b", direction=9),  # type: ignore[arg-type]
    ):
        with pytest.raises(GraftError) as raised:
            await ask(calls, wrong)
        assert raised.value.reason is Reason.INVALID_REQUEST
    assert await ask(calls, pb.GetLineageRequest(name="hf://a/b", depth=10**6))
