"""Drawn sequences of calls: the registry answers each as its model does, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from graft.blobs import describe_file
from graft.errors import GraftError, from_rpc_error
from graft.names import adapter_name, alias_name, version_name
from graft.registry.v1 import operations_service_pb2 as operations_pb
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceStub
from grpc.aio import AioRpcError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.models import make_adapter
from tests.support.postgres import PostgresServer
from tests.support.registry import RegistryCalls, registry_calls, start_registry
from tests.support.registry_model import Refused, RegistryModel, Split

NAMES = st.sampled_from(["a", "b"])
ALIASES = st.sampled_from(["production", "staging"])
NUMBERS = st.integers(1, 4)
SEEDS = st.integers(1, 4)
REQUESTS = st.sampled_from([f"r{number}" for number in range(8)])


class World:
    """A real registry with a base and the uploaded files of one adapter; a namespace an example."""

    def __init__(self, folder: Path, base: Path, url: str) -> None:
        self.runner = asyncio.Runner()
        self._folder, self._base, self._url = folder, base, url
        self._numbers = count(1)

    async def open(self) -> None:
        database = {"database": self._url} if self._url else {}
        self.server = await start_registry(self._folder / "registry", **database)
        self._calls = registry_calls(self.server.address)
        self.calls: RegistryCalls = await self._calls.__aenter__()
        made = make_adapter(self._folder / "adapter", self._base, seed=1)
        self.files = [describe_file(made, path) for path in sorted(made.iterdir())]
        for file in self.files:
            await self.calls.blobs.upload(made / file.path, file)

    async def new_namespace(self) -> tuple[str, str]:
        namespace = f"n{next(self._numbers)}"
        recorded = await self.calls.create_base(self._base, ns=namespace)
        return namespace, recorded.fingerprint.digest

    async def close(self) -> None:
        await self._calls.__aexit__(None, None, None)
        await self.server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path, tiny_base: Path) -> Iterator[World]:
    url = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    made = World(tmp_path, tiny_base, url)
    with made.runner:
        made.runner.run(made.open())
        yield made
        made.runner.run(made.close())


def machine_of(world: World) -> type[RuleBasedStateMachine]:
    """The state machine on a world."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model = RegistryModel()
            self.stub = world.calls.stub
            self.namespace, self.fingerprint = world.runner.run(world.new_namespace())

        def both(self, predict: Callable[[], Any], call: Callable[[], Awaitable[Any]]) -> Any:
            """Does both, and holds that they agree; returns (predicted, answered), or None."""
            try:
                predicted = predict()
            except Refused as refused:
                predicted, wanted = None, refused.reason
            else:
                return predicted, world.runner.run(_must(call))
            found = world.runner.run(_reason_of(call))
            assert found is wanted, (found, wanted)
            return None

        def name(self, adapter: str) -> str:
            return adapter_name(self.namespace, adapter)

        @rule(adapter=NAMES)
        def create(self, adapter: str) -> None:
            self.both(
                lambda: self.model.create_adapter(adapter),
                lambda: world.calls.create_adapter(adapter, ns=self.namespace),
            )

        @rule(adapter=NAMES, seed=SEEDS, request_id=REQUESTS)
        def commit(self, adapter: str, seed: int, request_id: str) -> None:
            request = pb.CommitVersionRequest(
                parent=self.name(adapter),
                files=world.files,
                base_fingerprint=self.fingerprint,
                lineage=pb.Lineage(seed=seed),
                request_id=request_id,
            )
            done = self.both(
                lambda: self.model.commit(adapter, seed, request_id),
                lambda: self.stub.CommitVersion(request),
            )
            if done is not None:
                assert done[1].number == done[0]

        @rule(
            adapter=NAMES, alias=ALIASES, number=NUMBERS, canary=st.none() | NUMBERS,
            expected=st.none() | st.integers(0, 4),
        )  # fmt: skip
        def move(
            self, adapter: str, alias: str, number: int, canary: int | None, expected: int | None
        ) -> None:
            parent = self.name(adapter)
            canaries = ((canary, 5.0),) if canary is not None and canary != number else ()
            request = pb.SetAliasRequest(
                name=alias_name(parent, alias),
                version=version_name(parent, number),
                canaries=[
                    pb.Canary(version=version_name(parent, one), weight_percent=weight)
                    for one, weight in canaries
                ],
            )
            if expected is not None:
                request.expected_version = version_name(parent, expected) if expected else ""
            self.both(
                lambda: self.model.move(adapter, alias, (number, canaries), expected),
                lambda: self.stub.SetAlias(request),
            )

        @rule(adapter=NAMES, alias=ALIASES)
        def roll_back(self, adapter: str, alias: str) -> None:
            request = pb.RollbackAliasRequest(name=alias_name(self.name(adapter), alias))
            self.both(
                lambda: self.model.rollback(adapter, alias),
                lambda: self.stub.RollbackAlias(request),
            )

        @rule(adapter=NAMES, alias=ALIASES)
        def delete_alias(self, adapter: str, alias: str) -> None:
            request = pb.DeleteAliasRequest(name=alias_name(self.name(adapter), alias))
            self.both(
                lambda: self.model.delete_alias(adapter, alias),
                lambda: self.stub.DeleteAlias(request),
            )

        @rule(adapter=NAMES, number=NUMBERS, what=st.sampled_from(["delete", "undelete", "purge"]))
        def end_version(self, adapter: str, number: int, what: str) -> None:
            name = version_name(self.name(adapter), number)
            calls: dict[str, tuple[Callable[..., None], Callable[[], Awaitable[Any]]]] = {
                "delete": (
                    self.model.delete_version,
                    lambda: self.stub.DeleteVersion(pb.DeleteVersionRequest(name=name)),
                ),
                "undelete": (
                    self.model.undelete_version,
                    lambda: self.stub.UndeleteVersion(pb.UndeleteVersionRequest(name=name)),
                ),
                "purge": (
                    self.model.purge_version,
                    lambda: self.stub.PurgeVersion(pb.PurgeVersionRequest(name=name)),
                ),
            }
            predict, call = calls[what]
            self.both(lambda: predict(adapter, number), call)

        @rule(adapter=NAMES, deleted=st.booleans())
        def end_adapter(self, adapter: str, deleted: bool) -> None:
            name = self.name(adapter)

            def call() -> Awaitable[Any]:
                if deleted:
                    return self.stub.DeleteAdapter(pb.DeleteAdapterRequest(name=name))
                return self.stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=name))

            self.both(lambda: self.model.set_deleted(adapter, deleted), call)

        @rule()
        def collect(self) -> None:
            stub = OperationsServiceStub(world.calls.channel)
            world.runner.run(
                _must(lambda: stub.CollectGarbage(operations_pb.CollectGarbageRequest()))
            )

        @invariant()
        def aliases_are_as_they_were_moved(self) -> None:
            request = pb.ListAliasesRequest(parent=f"namespaces/{self.namespace}/adapters/-")
            answer = world.runner.run(_must(lambda: self.stub.ListAliases(request)))
            assert {one.name: _split(one) for one in answer.aliases} == {
                alias_name(self.name(adapter), alias): split
                for adapter, model in self.model.adapters.items()
                if not model.deleted
                for alias, split in model.aliases.items()
            }

        @invariant()
        def versions_are_as_they_were_committed(self) -> None:
            for adapter, model in self.model.adapters.items():
                request = pb.ListVersionsRequest(parent=self.name(adapter), show_deleted=True)
                answer = world.runner.run(_must(lambda r=request: self.stub.ListVersions(r)))  # type: ignore[misc]
                assert {
                    one.number: (one.manifest.lineage.seed, _state(one)) for one in answer.versions
                } == {
                    number: (version.seed, version.state)
                    for number, version in model.versions.items()
                }

        def teardown(self) -> None:
            """The events alone rebuild where every alias points."""
            found: dict[str, Split] = {}
            for news in world.runner.run(self._events()):
                if news.WhichOneof("change") == "alias":
                    if news.change_type == pb.CHANGE_TYPE_DELETED:
                        del found[news.alias.name]
                    else:
                        found[news.alias.name] = _split(news.alias)
            assert found == {
                alias_name(self.name(adapter), alias): split
                for adapter, model in self.model.adapters.items()
                for alias, split in model.aliases.items()
            }

        async def _events(self) -> list[pb.WatchResponse]:
            call = self.stub.Watch(pb.WatchRequest(parent=f"namespaces/{self.namespace}"))
            found = []
            async for news in call:
                if news.WhichOneof("change") is None:
                    break
                found.append(news)
            call.cancel()
            revisions = [news.revision for news in found]
            assert revisions == sorted(set(revisions))
            return found

    return Machine


def _split(alias: pb.Alias) -> Split:
    number = int(alias.version.rpartition("/")[2])
    return number, tuple(
        (int(one.version.rpartition("/")[2]), one.weight_percent) for one in alias.canaries
    )


def _state(version: pb.Version) -> str:
    if version.HasField("purge_time"):
        return "purged"
    return "deleted" if version.HasField("delete_time") else "live"


async def _must(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


async def _reason_of(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        answer = await call()
    except AioRpcError as error:
        return from_rpc_error(error).reason
    except GraftError as error:
        return error.reason
    return answer


def test_the_registry_does_what_its_model_does(world: World) -> None:
    run_state_machine_as_test(
        machine_of(world),
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.soak
def test_the_registry_does_what_its_model_does_for_long(world: World) -> None:
    run_state_machine_as_test(
        machine_of(world),
        settings=settings(
            max_examples=400,
            stateful_step_count=80,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
