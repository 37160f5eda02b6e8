"""Bad adapters as they are pushed to a real registry: refused by name, or admitted because they are sound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from graft.errors import GraftError, Reason

from tests.support.bad_adapters import BadAdapter, everything
from tests.support.registry import RegistryCalls, registry_calls, running_registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
BAD = everything()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RegistryCalls, str]]:
    """One for all of them, and its base's fingerprint."""
    folder = tmp_path_factory.mktemp("registry")
    async with (
        running_registry(folder) as server,
        registry_calls(server.address) as calls,
    ):
        base = await calls.create_base(tiny_base)
        yield calls, base.fingerprint.digest


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_adapter_is_refused_by_name_or_is_sound(
    what: str, registry: tuple[RegistryCalls, str], tmp_path: Path
) -> None:
    calls, fingerprint = registry
    bad: BadAdapter = BAD[what]
    name = f"bad-{list(BAD).index(what)}"
    await calls.create_adapter(name)
    folder = bad.write(tmp_path / "bad")
    if not bad.words:
        version = await calls.commit(folder, fingerprint, name)
        assert version.name.endswith("/versions/1")
        return
    with pytest.raises(GraftError) as caught:
        await calls.commit(folder, fingerprint, name)
    assert caught.value.reason is Reason.VERSION_REFUSED
    assert bad.words in caught.value.message
    assert caught.value.next_step
    # Nothing half done: the next good version is the first.
    with pytest.raises(GraftError) as caught:
        await calls.get_version(f"namespaces/default/adapters/{name}/versions/1")
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
