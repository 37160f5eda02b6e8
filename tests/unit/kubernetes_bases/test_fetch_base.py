"""The init container's work: a version of a base, from the registry to a folder."""

from __future__ import annotations

from pathlib import Path

import graft
import pytest
from graft.bases import read_base
from graft.errors import GraftError, Reason

from services.inference.fetch_base import FetchSettings, fetch, main
from tests.support.registry import running_registry


def settings(address: str, target: Path, revision: int = 1) -> FetchSettings:
    return FetchSettings(
        registry_address=address, base=target, base_name="tiny", base_revision=revision
    )


async def test_a_version_is_fetched_once_and_serves_as_the_base(
    tiny_base: Path, tmp_path: Path
) -> None:
    target = tmp_path / "models" / "1"
    async with (
        running_registry(tmp_path / "registry") as server,
        graft.Client(registry=server.address) as client,
    ):
        version = await client.base_versions.push(tiny_base, "tiny")
        await fetch(settings(server.address, target))
        assert read_base(target, "x").fingerprint.digest == version.fingerprint
        written = (target / "config.json").stat().st_mtime_ns
        with pytest.raises(GraftError) as caught:
            await fetch(settings(server.address, tmp_path / "none", revision=7))
        assert caught.value.reason is Reason.VERSION_NOT_FOUND
        assert not (tmp_path / "none").exists()
    # The container starts again while the registry is away: what is there is enough.
    await fetch(settings(server.address, target))
    assert (target / "config.json").stat().st_mtime_ns == written


def test_settings_that_lack_something_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("BASE", "BASE_REVISION"):
        monkeypatch.delenv(f"GRAFT_INFERENCE_{name}", raising=False)
    assert main() == 2
    assert "base_revision" in capsys.readouterr().err
